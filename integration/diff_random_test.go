package integration

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/integration/image"
)

// TestDiffRandom makes random changes in containers of a Debian, one upon the other. What Lamina tells of them and what containerd's
// walking differ tells, put onto the parent, is what the container had.
func TestDiffRandom(t *testing.T) {
	requireRoot(t)
	c := startComparison(t, union)
	c.importImage(c.snapshotter, "debian.tar")
	c.requireFormats(c.random(c.withoutBulk(), 2, 400))
	c.requireShortWay()
	c.requireNothingLeft()
}

// TestThinDiffRandom does the same with volumes, with LAMINA_TORTURE=1 of ext4 too. A guest takes a minute to unpack a Debian:
// this image is the small one and a part of a Debian.
func TestThinDiffRandom(t *testing.T) {
	forThin(t, "", ordinarily(thinXFS), func(t *testing.T, b backend) {
		t.Helper()
		c := startComparison(t, b)
		c.finerThanWalking()
		c.importImage(c.snapshotter, "small.tar")
		c.random(c.withDebian(), 2, 160)
		c.requireShortWay()
		c.requireNothingLeft()
	})
}

// withDebian commits a layer on top of the image that has a part of a Debian, and returns its name.
func (c *comparison) withDebian() string {
	c.t.Helper()
	archives, err := filepath.Glob(filepath.Join(mustHave(c.t, ".cache"), "rootfs-*.tar"))
	require.NoError(c.t, err)
	require.NotEmpty(c.t, archives, "run integration/setup")
	top := topOf(parentsIn(c.ctr("snapshots", "ls")))
	within(c.t, c.prepare("with-debian", top), func(dir string) {
		_, err := command(c.t.Context(), nil, "tar", "--extract", "--file", archives[0], "--directory", dir, "--numeric-owner",
			"./etc", "./usr/share/perl5")
		require.NoError(c.t, err)
	})
	require.NoError(c.t, c.Commit(c.ctx, "base", "with-debian"))
	return "base"
}

// withoutBulk commits a layer on top of the image that deletes what takes long to read, and returns its name.
func (c *comparison) withoutBulk() string {
	c.t.Helper()
	top := topOf(parentsIn(c.ctr("snapshots", "ls")))
	within(c.t, c.prepare("without-bulk", top), func(dir string) {
		for _, name := range []string{image.Big, "usr/share/locale", "usr/share/zoneinfo", "usr/lib/x86_64-linux-gnu/gconv", "var/lib/dpkg/info"} {
			require.NoError(c.t, os.RemoveAll(filepath.Join(dir, name)))
		}
	})
	require.NoError(c.t, c.Commit(c.ctx, "base", "without-bulk"))
	return "base"
}

// random makes that many changes in each of some containers, of which each is made of what the last one became. It returns that, and its
// layer.
func (c *comparison) random(parent string, rounds, count int) (last string, layer ocispec.Descriptor) {
	c.t.Helper()
	seed := rand.Uint64()
	c.t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	made := map[string]int{}
	for round := range rounds {
		key, committed := fmt.Sprint("container-", round), fmt.Sprint("committed-", round)
		mounts := c.prepare(key, parent)
		var inUse ocispec.Descriptor
		var want map[string]file
		within(c.t, mounts, func(dir string) {
			changer := newChanger(c.t, dir, rng)
			changer.made = made
			changer.change(count)
			inUse = c.mustDiff(c.ours, key, diff.WithMediaType(ocispec.MediaTypeImageLayer))
			want = c.readLayered(dir)
		})
		var walked ocispec.Descriptor
		if round%2 == 0 {
			walked = c.mustDiff(c.walks, key)
		}
		require.NoError(c.t, c.Commit(c.ctx, committed, key))
		if round%2 == 1 {
			walked = c.mustDiff(c.walks, committed)
		}
		ours := c.mustDiff(c.ours, committed, diff.WithMediaType(ocispec.MediaTypeImageLayer))
		require.Equal(c.t, inUse, ours, "the same change, while it was in use")

		theirs := c.applied(c.walks, walked, parent)
		requireTree(c.t, forgetUnseen(theirs), forgetUnseen(want), "the walking diff")
		got := c.applied(c.ours, ours, parent)
		if !c.tellsTimes() {
			want = forgiven(want, got, theirs)
		}
		requireTree(c.t, got, want, "Lamina's diff")
		c.t.Logf("round %d: %d files; Lamina wrote %d bytes, uncompressed", round, len(want), ours.Size)
		parent, layer = committed, ours
	}
	(&changer{t: c.t, made: made}).requireAll()
	return parent, layer
}

func requireTree(t *testing.T, got, want map[string]file, what string) {
	t.Helper()
	for _, d := range differences(got, want) {
		t.Errorf("%s: %s", what, d)
	}
	if t.Failed() {
		t.FailNow()
	}
}

// requireFormats compares a snapshot again, with each compression and with the time of a source.
func (c *comparison) requireFormats(key string, plain ocispec.Descriptor) {
	c.t.Helper()
	for _, mediaType := range []string{ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd} {
		desc := c.mustDiff(c.ours, key, diff.WithMediaType(mediaType), diff.WithLabels(map[string]string{"lamina.test/label": "kept"}))
		require.Equal(c.t, mediaType, desc.MediaType)
		require.Less(c.t, desc.Size, plain.Size)
		blob := c.blob(c.ours, desc)
		require.Equal(c.t, desc.Digest, digest.FromBytes(blob))
		require.Equal(c.t, plain.Digest, digest.FromBytes(mustDecompress(c.t, blob)))
		got := c.labelsOf(c.ours, desc)
		require.Equal(c.t, "kept", got["lamina.test/label"])
		require.Equal(c.t, plain.Digest.String(), got[labels.LabelUncompressed])
		require.Equal(c.t, desc, c.mustDiff(c.ours, key, diff.WithMediaType(mediaType)), "the same again")
	}
	epoch := time.Date(2020, 1, 1, 2, 3, 4, 0, time.UTC)
	desc := c.mustDiff(c.ours, key, diff.WithMediaType(ocispec.MediaTypeImageLayer), diff.WithSourceDateEpoch(&epoch))
	ours := headersIn(c.t, c.blob(c.ours, desc))
	desc = c.mustDiff(c.walks, key, diff.WithMediaType(ocispec.MediaTypeImageLayer), diff.WithSourceDateEpoch(&epoch))
	requireAlike(c.t, ours, headersIn(c.t, c.blob(c.walks, desc)))
	bounded := 0
	for _, h := range ours {
		require.False(c.t, h.ModTime.After(epoch), h.Name)
		if h.ModTime.Equal(epoch) {
			bounded++
		}
	}
	require.NotZero(c.t, bounded)
}

// requireAlike checks that ours has the headers of the walking differ, in the same order. It may have more, and a directory's old contents
// hidden as a whole in place of deletions. The walking differ has further names of a file behind the one that has changed.
func requireAlike(t *testing.T, ours, theirs []*tar.Header) {
	t.Helper()
	require.True(t, slices.IsSortedFunc(ours, func(a, b *tar.Header) int { return slices.Compare(sortedBy(a), sortedBy(b)) }))
	alike := 0
	rest := ours
	for _, h := range theirs {
		named := func(o *tar.Header) bool { return o.Name == h.Name }
		if h.Typeflag == tar.TypeLink {
			require.True(t, slices.ContainsFunc(ours, named), "Lamina does not tell of %q", h.Name)
			continue
		}
		i := slices.IndexFunc(rest, named)
		if i < 0 && h.Typeflag == tar.TypeDir && slices.ContainsFunc(ours, named) {
			continue // the walking differ has the directory of such a name behind it too
		}
		if i < 0 {
			require.True(t, hides(ours, h.Name), "Lamina does not tell of %q, or earlier", h.Name)
			continue
		}
		if rest[i].Typeflag != tar.TypeLink { // its content is with another name
			require.Equal(t, h, rest[i])
			alike++
		}
		rest = rest[i+1:]
	}
	require.Greater(t, alike, len(theirs)/2)
	t.Logf("%d entries, %d of the walking differ, %d of them with the same header", len(ours), len(theirs), alike)
}

// hides reports whether a layer makes away with name by what it says of a directory above.
func hides(layer []*tar.Header, name string) bool {
	return strings.HasPrefix(path.Base(name), whiteout) && slices.ContainsFunc(layer, func(h *tar.Header) bool {
		dir, all := strings.CutSuffix(h.Name, opaque)
		return all && strings.HasPrefix(name, dir)
	})
}

const (
	whiteout = ".wh." // begins the name of an entry that says that what it goes on with is gone
	opaque   = whiteout + whiteout + ".opq"
)

// sortedBy returns the names on the way to what an entry tells of: an opaque directory follows the directory.
func sortedBy(h *tar.Header) []string {
	dir, base := path.Split(strings.TrimSuffix(h.Name, "/"))
	if base == opaque {
		base = ""
	}
	return strings.Split(dir+strings.TrimPrefix(base, whiteout), "/")
}

func mustDecompress(t *testing.T, blob []byte) []byte {
	t.Helper()
	r, err := compression.DecompressStream(bytes.NewReader(blob))
	require.NoError(t, err)
	b, err := io.ReadAll(r)
	require.NoError(t, errors.Join(err, r.Close()))
	return b
}

// headersIn returns the headers in a layer.
func headersIn(t *testing.T, layer []byte) (headers []*tar.Header) {
	t.Helper()
	for r := tar.NewReader(bytes.NewReader(layer)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return headers
		}
		require.NoError(t, err)
		headers = append(headers, h)
	}
}

// entriesIn returns them by name.
func entriesIn(t *testing.T, layer []byte) map[string]*tar.Header {
	t.Helper()
	entries := map[string]*tar.Header{}
	for _, h := range headersIn(t, layer) {
		require.NotContains(t, entries, h.Name)
		entries[h.Name] = h
	}
	return entries
}

// TestDiffFinerThanWalking compares what the walking differ takes for unchanged, what has not changed, and what is not Lamina's.
func TestDiffFinerThanWalking(t *testing.T) {
	requireRoot(t)
	c := startComparison(t, union)
	c.finerThanWalking()
	c.keptByLease()
	c.requireShortWay()
	c.requireNothingLeft()
	c.compareForeign()
}

// finerThanWalking changes the content of a file, whose size is the same, and its time too, which has a fraction; and nothing but the
// time of a directory. Then it compares where there is nothing to tell, and where all is.
func (c *comparison) finerThanWalking() {
	c.t.Helper()
	at := time.Date(2024, 5, 6, 7, 8, 9, 123456789, time.UTC)
	write := func(dir, content string) {
		name := filepath.Join(dir, "dir", "file")
		require.NoError(c.t, os.MkdirAll(filepath.Dir(name), 0o755))
		require.NoError(c.t, os.WriteFile(name, []byte(content), 0o644))
		require.NoError(c.t, os.Chtimes(name, at, at))
	}
	within(c.t, c.prepare("before-active", ""), func(dir string) {
		write(dir, "before")
		require.NoError(c.t, os.Mkdir(filepath.Join(dir, "other"), 0o755))
	})
	require.NoError(c.t, c.Commit(c.ctx, "before", "before-active"))
	var want map[string]file
	within(c.t, c.prepare("after", "before"), func(dir string) {
		write(dir, "after!")
		if c.tellsTimes() {
			require.NoError(c.t, os.Chtimes(filepath.Join(dir, "other"), at, at))
		}
		want = c.readLayered(dir)
	})
	requireTree(c.t, c.applied(c.ours, c.mustDiff(c.ours, "after"), "before"), want, "Lamina's diff")
	require.Empty(c.t, c.told(c.walks, "after"), "the walking differ has become finer")

	c.prepare("unchanged", "before")
	require.Empty(c.t, c.told(c.ours, "unchanged"))
	require.ElementsMatch(c.t, []string{"dir/", "dir/file", "other/"}, slices.Collect(maps.Keys(c.told(c.ours, "before"))))
	for _, key := range []string{"unchanged", "after", "before"} {
		require.NoError(c.t, c.Remove(c.ctx, key))
	}
}

// told compares a snapshot and returns what is in the layer.
func (c *comparison) told(with client, key string) map[string]*tar.Header {
	c.t.Helper()
	return entriesIn(c.t, mustDecompress(c.t, c.blob(with, c.mustDiff(with, key))))
}

// compareForeign compares what is not Lamina's, which containerd itself then does.
func (c *comparison) compareForeign() {
	c.t.Helper()
	bind := func(dir string) []mount.Mount {
		return []mount.Mount{{Type: "bind", Source: dir, Options: []string{"rbind", "ro"}}}
	}
	upper := c.t.TempDir()
	require.NoError(c.t, os.WriteFile(filepath.Join(upper, "new"), []byte("new"), 0o600))
	desc, err := c.ours.differ().Compare(c.ctx, bind(c.t.TempDir()), bind(upper))
	require.NoError(c.t, err)
	require.Contains(c.t, entriesIn(c.t, mustDecompress(c.t, c.blob(c.ours, desc))), "new")
	require.True(c.t, strings.Contains(logOf(c.t, c.node), walked), "the walking differ has not been asked")
	c.requireSaid("call refused", "class=Unimplemented")
	c.requireUndone()
}
