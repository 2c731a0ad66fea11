package overlayaufs

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/lamina-snapshotter/lamina/overlayaufs/internal/quota"
)

// FuzzParseMounts holds the mounts that a client may hand in, an option a line: what is taken names contents of ours alone, each in the
// spelling in which it is given out.
func FuzzParseMounts(f *testing.F) {
	for _, seed := range []struct{ typ, source, options string }{
		{"overlay", "overlay", "index=off\nworkdir=/r/3/work\nupperdir=/r/3/fs\nlowerdir=/r/2/fs:/r/1/fs"},
		{"overlay", "", "lowerdir=/r/2/fs:/r/../etc"},
		{"overlay", "", "workdir=/r/3/work\nupperdir=/r/3/fs\nuidmap=0:1:1\ngidmap=0:1:1"},
		{"overlay", "", "workdir=/etc\nlowerdir=/r/2/fs:/r/1/fs"},
		{"bind", "/r/3/fs", "rbind"},
		{"bind", "/r/03/fs", ""},
		{"bind", "/r/2/../3/fs", ""},
		{"aufs", "", "br:/r/3/fs=rw:/r/2/fs=rr+wh"},
	} {
		f.Add(seed.typ, seed.source, seed.options)
	}
	overlaid, united := &Backend{root: "/r"}, tAufs("udba=none")
	f.Fuzz(func(t *testing.T, typ, source, options string) {
		given := []mount.Mount{{Type: typ, Source: source, Options: strings.Split(options, "\n")}}
		for _, b := range []*Backend{overlaid, united} {
			if _, err := b.parseMounts(given); err != nil {
				continue
			}
			for _, dir := range directoriesOf(&given[0]) {
				if rel, err := filepath.Rel(b.root, dir); err != nil || !filepath.IsLocal(rel) || filepath.Clean(dir) != dir {
					t.Errorf("%q is taken, and has %q", given, dir)
				}
			}
		}
	})
}

// directoriesOf returns the directories that a mount names, in whatever options. A workdir means nothing without an upperdir.
func directoriesOf(m *mount.Mount) (dirs []string) {
	if m.Type == "bind" {
		return []string{m.Source}
	}
	upper := slices.ContainsFunc(m.Options, func(o string) bool { return strings.HasPrefix(o, "upperdir=") })
	for _, o := range m.Options {
		for _, key := range []string{"lowerdir=", "upperdir=", "workdir=", "lowerdir+=", "datadir+=", "br:", "append:"} {
			list, ok := strings.CutPrefix(o, key)
			if !ok || key == "workdir=" && !upper || m.Type == driverAufs != (key == "br:" || key == "append:") {
				continue
			}
			for dir := range strings.SplitSeq(list, ":") {
				if m.Type == driverAufs {
					dir, _, _ = strings.Cut(dir, "=")
				}
				dirs = append(dirs, dir)
			}
		}
	}
	return dirs
}

// FuzzLimits holds what labels ask for within what the kernel keeps.
func FuzzLimits(f *testing.F) {
	for _, seed := range []string{"", "0", "1", "-1", "9223372036854775807", "1e9", "0x10", "+1", "1,upperdir=/etc", "1\n2"} {
		f.Add(seed, seed)
	}
	b := &Backend{}
	f.Fuzz(func(t *testing.T, size, inodes string) {
		limits, err := b.limitsOf(map[string]string{snapshots.LabelSnapshotMaxSize: size, LabelMaxInodes: inodes})
		if err != nil {
			if limits != (quota.Limits{}) {
				t.Errorf("%q, %q: %+v and %v", size, inodes, limits, err)
			}
			return
		}
		if limits.Bytes == 0 || limits.Inodes == 0 || limits.Bytes%blockSize != 0 || limits.Inodes > maxLimit {
			t.Errorf("%q, %q: %+v", size, inodes, limits)
		}
	})
}
