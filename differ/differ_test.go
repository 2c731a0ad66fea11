package differ

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

// The layer is, byte for byte, the one that containerd's own differ writes.
func TestCompareAsContainerd(t *testing.T) {
	lower, upper := tTrees(t)
	n := tNode(t)
	want := theirs(t, lower, upper)
	for _, mediaType := range mediaTypes {
		got, desc := n.mustCompare(lower, upper, diff.WithMediaType(mediaType))
		if !bytes.Equal(got, want) {
			t.Errorf("%s: the layer has\n%s\nwant\n%s", mediaType, strings.Join(headers(t, got), "\n"), strings.Join(headers(t, want), "\n"))
		}
		require.Equal(t, mediaType, desc.MediaType)
		info, err := n.store.Info(n.ctx(), desc.Digest)
		require.NoError(t, err)
		require.Equal(t, info.Size, desc.Size)
		require.Equal(t, digest.FromBytes(want).String(), info.Labels[labels.LabelUncompressed])
	}
	_, desc := n.mustCompare(lower, upper)
	require.Equal(t, ocispec.MediaTypeImageLayerGzip, desc.MediaType)
}

func TestCompareEpoch(t *testing.T) {
	lower, upper := tTrees(t)
	n := tNode(t)
	bound := time.Date(1990, 1, 2, 3, 4, 5, 6, time.UTC)
	got, _ := n.mustCompare(lower, upper, diff.WithSourceDateEpoch(&bound))
	require.Equal(t, headers(t, theirs(t, lower, upper, archive.WithSourceDateEpoch(&bound))), headers(t, got))
}

// A layer without an entry is one too.
func TestCompareNothing(t *testing.T) {
	n := tNode(t)
	dir := t.TempDir()
	got, _ := n.mustCompare(dir, dir)
	require.Equal(t, theirs(t, dir, dir), got)
}

// The blob is the same, on one processor as on many.
func TestCompareDeterministic(t *testing.T) {
	lower, upper := tTrees(t)
	random := make([]byte, 2<<20) // several blocks of each compressor
	for i := range random {
		random[i] = byte(i * i >> 7)
	}
	mustWrite(t, filepath.Join(upper, "blocks"), string(random))
	n := tNode(t)
	for _, mediaType := range mediaTypes {
		_, want := n.mustCompare(lower, upper, diff.WithMediaType(mediaType))
		for _, procs := range []int{1, 3} {
			was := runtime.GOMAXPROCS(procs)
			_, got := n.mustCompare(lower, upper, diff.WithMediaType(mediaType))
			runtime.GOMAXPROCS(was)
			require.Equal(t, want, got, procs)
		}
	}
}

// What is not served here costs nothing, and nobody is asked.
func TestCompareNotImplemented(t *testing.T) {
	d := New(&trees{}, nil, nil)
	_, err := d.Compare(t.Context(), nil, []mount.Mount{{Type: "overlay"}})
	require.ErrorIs(t, err, errdefs.ErrNotImplemented)
	_, err = d.Compare(t.Context(), tMounts(t.TempDir()), tMounts(t.TempDir()), diff.WithMediaType("application/vnd.docker.image.rootfs.diff.tar.gzip"))
	require.ErrorIs(t, err, errdefs.ErrNotImplemented)
	_, err = d.Compare(t.Context(), nil, nil, diff.WithCompressor(func(io.Writer, string) (io.WriteCloser, error) { return nil, nil }))
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
}

func TestCompareCompressor(t *testing.T) {
	lower, upper := tTrees(t)
	n := tNode(t)
	var asked string
	got, desc := n.mustCompare(lower, upper, diff.WithMediaType("application/x.gzip"), diff.WithCompressor(
		func(w io.Writer, mediaType string) (io.WriteCloser, error) {
			asked = mediaType
			return gzip.NewWriter(w), nil
		}))
	require.Equal(t, theirs(t, lower, upper), got)
	require.Equal(t, []string{"application/x.gzip", asked}, []string{desc.MediaType, "application/x.gzip"})
}

// The labels are the caller's and the uncompressed digest, also on a blob that was there without it.
func TestCompareLabels(t *testing.T) {
	lower, upper := tTrees(t)
	n := tNode(t)
	given := map[string]string{"a": "b"}
	_, desc := n.mustCompare(lower, upper, diff.WithLabels(given))
	require.Len(t, given, 1, "the caller's map was written to")
	info, err := n.store.Info(n.ctx(), desc.Digest)
	require.NoError(t, err)
	require.Equal(t, "b", info.Labels["a"])
	uncompressed := info.Labels[labels.LabelUncompressed]

	delete(info.Labels, labels.LabelUncompressed)
	_, err = n.store.Update(n.ctx(), info, "labels")
	require.NoError(t, err)
	_, again := n.mustCompare(lower, upper)
	require.Equal(t, desc, again)
	info, err = n.store.Info(n.ctx(), desc.Digest)
	require.NoError(t, err)
	require.Equal(t, map[string]string{"a": "b", labels.LabelUncompressed: uncompressed}, info.Labels)
}

// A reference of the caller shows the progress. What lies under it already is written anew.
func TestCompareReference(t *testing.T) {
	lower, upper := tTrees(t)
	n := tNode(t)
	w, err := n.store.Writer(n.ctx(), content.WithRef("mine"))
	require.NoError(t, err)
	_, err = w.Write([]byte("of an earlier call"))
	require.NoError(t, errors.Join(err, w.Close()))
	got, _ := n.mustCompare(lower, upper, diff.WithReference("mine"))
	require.Equal(t, theirs(t, lower, upper), got)

	n.source.after = func(Change) error { return io.ErrNoProgress }
	_, err = n.Compare(n.ctx(), tMounts(lower), tMounts(upper), diff.WithReference("mine"))
	require.ErrorIs(t, err, io.ErrNoProgress)
	_, err = n.store.Status(n.ctx(), "mine")
	require.NoError(t, err, "the ingest of a caller is his")
	require.NoError(t, n.store.Abort(n.ctx(), "mine"))
}

// Bytes come as they are there, and not at the end.
func TestCompareProgress(t *testing.T) {
	upper := t.TempDir()
	for _, name := range []string{"a", "b"} {
		mustWrite(t, filepath.Join(upper, name), strings.Repeat("0123456789", 1<<18))
	}
	n := tNode(t)
	var seen int64
	n.source.after = func(c Change) error {
		if c.Path != "a" {
			return nil
		}
		require.Eventually(t, func() bool {
			s, err := n.store.Status(n.ctx(), "mine")
			seen = s.Offset
			return err == nil && seen > 0
		}, 10*time.Second, time.Millisecond)
		return nil
	}
	_, desc := n.mustCompare(t.TempDir(), upper, diff.WithMediaType(ocispec.MediaTypeImageLayer), diff.WithReference("mine"))
	require.Less(t, seen, desc.Size)
}

// Without a lease of the caller the layer has one of Lamina's, or a garbage collection would take it.
func TestCompareLease(t *testing.T) {
	lower, upper := tTrees(t)
	n := tNode(t)
	_, desc := n.mustCompare(lower, upper)
	_, err := n.db.GarbageCollect(n.ctx())
	require.NoError(t, err)
	n.mustRead(desc)
	all, err := n.leases.List(n.ctx())
	require.NoError(t, err)
	require.Len(t, all, 1)
	expires, err := time.Parse(time.RFC3339, all[0].Labels["containerd.io/gc.expire"])
	require.NoError(t, err)
	require.WithinDuration(t, time.Now().Add(leaseTime), expires, time.Minute)
	require.Equal(t, "diff", all[0].Labels[leaseLabel])

	require.NoError(t, n.leases.Delete(n.ctx(), all[0]))
	_, err = n.db.GarbageCollect(n.ctx())
	require.NoError(t, err)
	_, err = n.store.Info(n.ctx(), desc.Digest)
	require.ErrorIs(t, err, errdefs.ErrNotFound, "it was not the lease that kept it")

	// The caller's is enough.
	mine, err := n.leases.Create(n.ctx(), leases.WithID("mine"))
	require.NoError(t, err)
	_, err = n.Compare(leases.WithLease(n.ctx(), mine.ID), tMounts(lower), tMounts(upper))
	require.NoError(t, err)
	held, err := n.leases.ListResources(n.ctx(), mine)
	require.NoError(t, err)
	require.Len(t, held, 1)
	all, err = n.leases.List(n.ctx())
	require.NoError(t, err)
	require.Len(t, all, 1)
}

// What changes or vanishes while it is read is an error, and nothing is written.
func TestCompareChanged(t *testing.T) {
	for name, change := range map[string]func(dir string) error{
		"shorter": func(dir string) error { return os.Truncate(filepath.Join(dir, "b"), 10) },
		"longer":  func(dir string) error { return os.Truncate(filepath.Join(dir, "b"), 1<<20) },
		"written": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "b"), bytes.Repeat([]byte("B"), 200<<10), 0o644)
		},
		"replaced": func(dir string) error {
			return os.Rename(filepath.Join(filepath.Dir(dir), "other"), filepath.Join(dir, "b"))
		},
		"gone": func(dir string) error { return os.Remove(filepath.Join(dir, "b")) },
		"a link": func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, "b")), os.Symlink("a", filepath.Join(dir, "b")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			upper := filepath.Join(t.TempDir(), "upper")
			for _, name := range []string{"a", "b", "../other"} {
				mustWrite(t, filepath.Join(upper, name), strings.Repeat("b", 200<<10))
			}
			n := tNode(t)
			// Between what the source saw and the look at the file.
			n.Differ = New(sourceFunc(func(ctx context.Context, lower, upper []mount.Mount, fn func(Change) error) error {
				return n.source.Changes(ctx, lower, upper, func(c Change) error {
					if c.Path == "b" {
						require.NoError(t, change(upper[0].Source))
					}
					return fn(c)
				})
			}), n.store, n.leases)
			_, err := n.Compare(n.ctx(), tMounts(t.TempDir()), tMounts(upper))
			require.ErrorIs(t, err, errdefs.ErrAborted)
			require.ErrorContains(t, err, "/b changed while it was read: pause the container, or try again")
			n.noLeases()
		})
	}
}

type sourceFunc func(ctx context.Context, lower, upper []mount.Mount, fn func(Change) error) error

func (f sourceFunc) Changes(ctx context.Context, lower, upper []mount.Mount, fn func(Change) error) error {
	return f(ctx, lower, upper, fn)
}

// A source that finds something gone says so by the class.
func TestCompareVanished(t *testing.T) {
	lower, upper := tTrees(t)
	n := tNode(t)
	n.source.after = func(Change) error { return os.ErrNotExist }
	_, err := n.Compare(n.ctx(), tMounts(lower), tMounts(upper))
	require.ErrorIs(t, err, errdefs.ErrAborted)
	n.noLeases()
}

func TestCompareWhiteoutName(t *testing.T) {
	n := tNode(t)
	upper := t.TempDir()
	mustWrite(t, filepath.Join(upper, "dir/.wh.file"), "")
	_, err := n.Compare(n.ctx(), tMounts(t.TempDir()), tMounts(upper))
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	require.ErrorContains(t, err, "/dir/.wh.file")
}

// A call that is cancelled ends, wherever it is, and leaves nothing.
func TestCompareCancelled(t *testing.T) {
	lower, upper := tTrees(t)
	for _, mediaType := range mediaTypes {
		for _, name := range []string{"large", "etc", "z-hard-link"} {
			n := tNode(t)
			ctx, cancel := context.WithCancel(n.ctx())
			n.source.after = func(c Change) error {
				if c.Path == name {
					cancel()
				}
				return nil
			}
			_, err := n.Compare(ctx, tMounts(lower), tMounts(upper), diff.WithMediaType(mediaType))
			require.ErrorIs(t, err, context.Canceled)
			n.noLeases()
		}
	}
}

// A large file changes while the tar stream reads it.
func TestCompareChangedWhileRead(t *testing.T) {
	const size = 8 << 20
	for name, change := range map[string]func(f *os.File) error{
		"shorter": func(f *os.File) error { return f.Truncate(size / 2) },
		"longer":  func(f *os.File) error { return f.Truncate(2 * size) },
		"written": func(f *os.File) error { _, err := f.WriteAt([]byte("B"), size-1); return err },
	} {
		t.Run(name, func(t *testing.T) {
			upper := t.TempDir()
			mustWrite(t, filepath.Join(upper, "dir/large"), strings.Repeat("b", size))
			f, err := os.OpenFile(filepath.Join(upper, "dir/large"), os.O_RDWR, 0)
			require.NoError(t, err)
			defer f.Close()
			n := tNode(t)
			s := &brokenStore{Store: n.store, before: sync.OnceFunc(func() { require.NoError(t, change(f)) })}
			n.Differ = New(n.source, s, n.leases)
			_, err = n.Compare(n.ctx(), tMounts(t.TempDir()), tMounts(upper), diff.WithMediaType(ocispec.MediaTypeImageLayer))
			require.ErrorIs(t, err, errdefs.ErrAborted)
			require.ErrorContains(t, err, "/dir/large changed while it was read")
			n.noLeases()
		})
	}
}

// brokenStore is a content store that fails in a step.
type brokenStore struct {
	content.Store
	before        func() // each write
	write, commit error
}

type brokenWriter struct {
	content.Writer
	s *brokenStore
}

func (s *brokenStore) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	w, err := s.Store.Writer(ctx, opts...)
	return &brokenWriter{w, s}, err
}

func (w *brokenWriter) Write(p []byte) (int, error) {
	if w.s.before != nil {
		w.s.before()
	}
	if w.s.write != nil {
		return 0, w.s.write
	}
	return w.Writer.Write(p)
}

func (w *brokenWriter) Commit(ctx context.Context, size int64, dgst digest.Digest, opts ...content.Opt) error {
	if w.s.commit != nil {
		return w.s.commit
	}
	return w.Writer.Commit(ctx, size, dgst, opts...)
}

// What the content store says is the answer, with a class where it gave none, and nothing stays.
func TestCompareStoreFails(t *testing.T) {
	lower, upper := tTrees(t)
	mustWrite(t, filepath.Join(upper, "more"), strings.Repeat("0123456789", 1<<18))
	n := tNode(t)
	full := errors.New("write /var/lib/containerd/x: no space left on device") // as it comes through gRPC
	for _, s := range []*brokenStore{{write: full}, {commit: full}, {write: errdefs.ErrUnavailable}} {
		s.Store = n.store
		var want error = errdefs.ErrResourceExhausted
		if s.write != nil && errdefs.IsUnavailable(s.write) {
			want = errdefs.ErrUnavailable
		}
		n.Differ = New(n.source, s, n.leases)
		for _, mediaType := range mediaTypes {
			_, err := n.Compare(n.ctx(), tMounts(lower), tMounts(upper), diff.WithMediaType(mediaType))
			require.ErrorIs(t, err, want)
			n.noLeases()
		}
	}
}

// Opaque directories and deletions stand where a reader expects them.
func TestCompareOpaque(t *testing.T) {
	n := tNode(t)
	upper := t.TempDir()
	mustWrite(t, filepath.Join(upper, "dir/file"), "")
	n.Differ = New(sourceFunc(func(ctx context.Context, lower, upper []mount.Mount, fn func(Change) error) error {
		return n.source.Changes(ctx, lower, upper, func(c Change) error {
			c.Opaque = c.Path == "dir"
			return fn(c)
		})
	}), n.store, n.leases)
	got, _ := n.mustCompare(t.TempDir(), upper)
	var names []string
	for _, h := range headers(t, got) {
		names = append(names, strings.Fields(h)[1])
	}
	require.Equal(t, []string{"dir/", "dir/.wh..wh..opq", "dir/file"}, names)
}
