package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/doctor"
	"github.com/lamina-snapshotter/lamina/integration/guest"
	"github.com/lamina-snapshotter/lamina/overlayaufs"
	"github.com/lamina-snapshotter/lamina/snapshotter"
)

// A disk is a file system on a block device.
type disk struct {
	fs    string
	mkfs  []string
	mount string // options
	full  error  // of a write beyond a limit
}

// quotaDisks are file systems with project quotas, set up as docs/union.md says.
var quotaDisks = []disk{
	{fs: "ext4", mkfs: []string{"-q", "-O", "quota,project"}, mount: "prjquota", full: unix.EDQUOT},
	{fs: "xfs", mkfs: []string{"-q"}, mount: "pquota", full: unix.ENOSPC},
}

// mustMountDisk returns the mount point of a new file system.
func (d disk) mustMountDisk(t *testing.T) string {
	t.Helper()
	dir := mustTempDir(t)
	device := mustDisk(t, dir, "disk", 2<<30)
	_, err := command(background, nil, append(append([]string{"mkfs." + d.fs}, d.mkfs...), device)...)
	require.NoError(t, err)
	mnt := filepath.Join(dir, "m")
	require.NoError(t, os.Mkdir(mnt, 0o700))
	require.NoError(t, unix.Mount(device, mnt, d.fs, 0, d.mount))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(mnt, 0)) })
	return mnt
}

// forEachQuota runs a test on each file system that has project quotas.
func forEachQuota(t *testing.T, test func(t *testing.T, d disk, mnt string)) {
	t.Helper()
	guest.Require(t)
	for _, d := range quotaDisks {
		t.Run(d.fs, func(t *testing.T) { test(t, d, d.mustMountDisk(t)) })
	}
}

// layers is a union backend that is called directly, and what it has.
type layers struct {
	*overlayaufs.Backend
	t       *testing.T
	root    string
	project uint32 // the last one given
}

func openLayers(t *testing.T, root string, c overlayaufs.Config) *layers {
	t.Helper()
	c.Root = root
	b, err := overlayaufs.Open(t.Context(), c)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	require.NoError(t, b.Claim(t.Context(), "11111111-2222-3333-4444-555555555555", 1))
	first, _ := b.Projects()
	return &layers{Backend: b, t: t, root: root, project: first}
}

// layer makes a content in a project of its own on top of a chain, and returns the chain with it.
func (l *layers) layer(id uint64, below []snapshotter.Content, labels map[string]string) []snapshotter.Content {
	l.t.Helper()
	l.project++
	c := snapshotter.Content{ID: id, Project: l.project}
	_, err := l.Make(l.t.Context(), c, below, labels)
	require.NoError(l.t, err)
	return append([]snapshotter.Content{c}, below...)
}

// mounted mounts a chain to be written.
func (l *layers) mounted(chain []snapshotter.Content, labels map[string]string) (dir string, unmount func()) {
	l.t.Helper()
	mounts, err := l.Mounts(l.t.Context(), chain, true, labels)
	require.NoError(l.t, err)
	return mustMount(l.t, mounts)
}

// base makes a frozen layer of a few files.
func (l *layers) base() []snapshotter.Content {
	l.t.Helper()
	chain := l.layer(1, nil, nil)
	dir, unmount := l.mounted(chain, nil)
	require.NoError(l.t, os.MkdirAll(filepath.Join(dir, "dir/sub"), 0o755))
	for _, name := range []string{"a", "b", "dir/c", "dir/sub/d"} {
		require.NoError(l.t, os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644))
	}
	require.NoError(l.t, os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "link")))
	unmount()
	_, err := l.Freeze(l.t.Context(), chain)
	require.NoError(l.t, err)
	return chain
}

// requireUsage holds the usage of a content to what containerd counts in its directory. xfs counts what was deleted a moment ago,
// as overlayfs does in its work directory at each mount, until it gets to it in the background; a commit waits for that.
func (l *layers) requireUsage(chain []snapshotter.Content) snapshots.Usage {
	l.t.Helper()
	want, err := fs.DiskUsage(l.t.Context(), filepath.Join(l.root, fmt.Sprint(chain[0].ID), "fs"))
	require.NoError(l.t, err)
	var got snapshots.Usage
	require.EventuallyWithT(l.t, func(c *assert.CollectT) {
		got, err = l.Usage(l.t.Context(), chain)
		require.NoError(c, err)
		require.Equal(c, snapshots.Usage{Size: want.Size, Inodes: want.Inodes}, got)
	}, 10*time.Second, time.Millisecond)
	return got
}

func limits(bytes, inodes int) map[string]string {
	labels := map[string]string{}
	if bytes > 0 {
		labels[snapshots.LabelSnapshotMaxSize] = fmt.Sprint(bytes)
	}
	if inodes > 0 {
		labels[overlayaufs.LabelMaxInodes] = fmt.Sprint(inodes)
	}
	return labels
}

// fillMiB writes a file until it has that many MiB, or an error.
func fillMiB(path string, mebibytes int) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for range mebibytes {
		if _, err := f.Write(make([]byte, 1<<20)); err != nil {
			return err
		}
	}
	return nil
}

// TestQuotaLimits writes beyond the limits of a container, raises and lowers them while it is mounted, and lifts them
// with the commit.
func TestQuotaLimits(t *testing.T) {
	forEachQuota(t, func(t *testing.T, d disk, mnt string) {
		t.Helper()
		l := openLayers(t, filepath.Join(mnt, "union"), overlayaufs.Config{Quota: "on", MaxSize: 4 << 20})
		base := l.base()
		chain := l.layer(2, base, limits(8<<20, 20))
		dir, unmount := l.mounted(chain, limits(8<<20, 20))

		var st unix.Statfs_t
		require.NoError(t, unix.Statfs(filepath.Join(l.root, "2", "fs"), &st))
		require.EqualValues(t, 8<<20, int64(st.Blocks)*st.Bsize, "df shows the limit")

		require.NoError(t, fillMiB(filepath.Join(dir, "fits"), 7))
		require.ErrorIs(t, fillMiB(filepath.Join(dir, "large"), 8), d.full)
		require.NoError(t, os.Remove(filepath.Join(dir, "large")))
		many := func() (err error) {
			for i := 0; i < 30 && err == nil; i++ {
				err = os.WriteFile(filepath.Join(dir, fmt.Sprint("n", i)), nil, 0o600)
			}
			return err
		}
		require.ErrorIs(t, many(), d.full, "inodes")

		resize := func(labels map[string]string) {
			t.Helper()
			size, err := l.Resize(t.Context(), chain[0], base, labels)
			require.NoError(t, err)
			require.Zero(t, size)
		}
		resize(limits(32<<20, 100))
		require.NoError(t, many())
		require.NoError(t, fillMiB(filepath.Join(dir, "large"), 20))
		resize(limits(16<<20, 100))
		require.ErrorIs(t, fillMiB(filepath.Join(dir, "more"), 1), d.full, "there is more than the new limit already")
		_, err := l.Resize(t.Context(), chain[0], base, map[string]string{snapshots.LabelSnapshotMaxSize: "much"})
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument)

		// What a crash leaves between Resize and the record: Mounts corrects it.
		_, err = l.Mounts(t.Context(), chain, true, limits(64<<20, 0))
		require.NoError(t, err)
		require.NoError(t, fillMiB(filepath.Join(dir, "more"), 20))
		_, err = l.Mounts(t.Context(), chain, true, nil)
		require.NoError(t, err)
		require.ErrorIs(t, fillMiB(filepath.Join(dir, "again"), 2), d.full, "without a label: that of the configuration, and room")
		unmount()

		_, err = l.Freeze(t.Context(), chain)
		require.NoError(t, err)
		require.NoError(t, fillMiB(filepath.Join(l.root, "2", "fs", "frozen"), 10), "what is committed has no limit")
		dir, _ = l.mounted(chain, map[string]string{snapshots.LabelSnapshotRef: "sha256:abc"})
		require.NoError(t, fillMiB(filepath.Join(dir, "unbounded"), 10), "what is unpacked has no limit by default")
	})
}

// TestQuotaOverlay does in a bounded container what overlayfs does with links, renames and files of its own, and compares
// what is counted with a walk.
func TestQuotaOverlay(t *testing.T) {
	forEachQuota(t, func(t *testing.T, _ disk, mnt string) {
		t.Helper()
		l := openLayers(t, filepath.Join(mnt, "union"), overlayaufs.Config{})
		base := l.base()
		l.requireUsage(base)
		chain := l.layer(2, base, limits(64<<20, 1000))
		l.requireUsage(chain)
		dir, unmount := l.mounted(chain, limits(64<<20, 1000))
		in := func(name string) string { return filepath.Join(dir, name) }
		l.requireUsage(chain)

		for what, err := range map[string]error{
			"copy up":                     os.Chmod(in("dir/sub/d"), 0o600),
			"whiteout":                    os.Remove(in("b")),
			"whiteout of a link":          os.Remove(in("link")),
			"new directory":               os.MkdirAll(in("new/below"), 0o755),
			"file":                        fillMiB(in("new/file"), 3),
			"link of a file":              os.Link(in("new/file"), in("dir/link")),
			"link of what is copied up":   os.Link(in("a"), in("dir/a")),
			"symbolic link":               os.Symlink("/etc", in("new/below/symlink")),
			"fifo":                        unix.Mkfifo(in("new/fifo"), 0o600),
			"rename of what is copied up": os.Rename(in("dir/c"), in("new/c")),
		} {
			require.NoError(t, err, what)
		}
		require.NoError(t, os.Rename(in("new"), in("dir/moved")))
		require.NoError(t, os.RemoveAll(in("dir/sub")))
		require.NoError(t, os.Mkdir(in("dir/sub"), 0o755), "an opaque directory")
		require.NoError(t, os.WriteFile(in("dir/sub/new"), nil, 0o600))
		_, err := os.ReadFile(in("dir/moved/file"))
		require.NoError(t, err)
		unmount()

		said, err := l.Freeze(t.Context(), chain)
		require.NoError(t, err)
		require.NotNil(t, said)
		require.Equal(t, l.requireUsage(chain), *said)
		again, err := l.Usage(t.Context(), chain)
		require.NoError(t, err)
		require.Equal(t, again, *said)
		require.Greater(t, said.Size, int64(3<<20))
		l.requireUsage(base)
		walked, err := l.Usage(t.Context(), []snapshotter.Content{{ID: 2}}) // as one that was made before there were quotas
		require.NoError(t, err)
		require.Equal(t, walked, *said)
	})
}

// TestQuotaProjects deletes contents, with and without a record, and finds their projects empty and without limits.
func TestQuotaProjects(t *testing.T) {
	forEachQuota(t, func(t *testing.T, _ disk, mnt string) {
		t.Helper()
		root := filepath.Join(mnt, "lamina")
		l := openLayers(t, filepath.Join(mnt, "union"), overlayaufs.Config{})
		first, last := l.Projects()
		require.Equal(t, uint32(1<<30), first)
		require.Equal(t, uint32(1<<30+1<<24-1), last)
		for id, known := range map[uint64]bool{1: true, 2: false} {
			chain := l.layer(id, nil, limits(8<<20, 10))
			dir, unmount := l.mounted(chain, limits(8<<20, 10))
			require.NoError(t, fillMiB(filepath.Join(dir, "file"), 2))
			unmount()
			c := chain[0]
			taken, err := l.ProjectTaken(c.Project)
			require.NoError(t, err)
			require.True(t, taken)
			if !known {
				c.Project = 0
			}
			require.NoError(t, l.Delete(t.Context(), c))
			require.NoError(t, l.Delete(t.Context(), c))
			taken, err = l.ProjectTaken(chain[0].Project)
			require.NoError(t, err)
			require.False(t, taken, "known %v", known)
		}
		// Somebody else on the file system has the first ones.
		l.project = first - 1
		l.layer(3, nil, limits(1<<20, 0))
		c := union.config(root)
		withHost(t, c, func(h *host) {
			h.layer("base", "", []byte("base"))
			h.prepare("active", "base", nil)
			h.requireFile("active", "base", "base")
		})
		withHost(t, c, func(h *host) {
			before, err := h.Usage(t.Context(), "active")
			require.NoError(t, err)
			require.EqualValues(t, 1, before.Inodes, "after a restart too")
			h.remove("active")
			h.prepare("active", "base", nil)
		})
		union.check(t, root)
		usage, err := l.Usage(t.Context(), []snapshotter.Content{{ID: 3, Project: first}})
		require.NoError(t, err)
		require.EqualValues(t, 1, usage.Inodes, "nobody else was put into the project")
	})
}

// TestQuotaUpdate limits a container by a label that is changed while it runs, and takes its directory out of its project.
func TestQuotaUpdate(t *testing.T) {
	forEachQuota(t, func(t *testing.T, d disk, mnt string) {
		t.Helper()
		root := filepath.Join(mnt, "lamina")
		c := union.config(root)
		c.Union.Quota = "strict"
		withHost(t, c, func(h *host) {
			h.layer("base", "", []byte("base"))
			dir, unmount := mustMount(t, h.prepare("active", "base", limits(4<<20, 0)))
			defer unmount()
			require.ErrorIs(t, fillMiB(filepath.Join(dir, "large"), 8), d.full)
			_, err := h.Update(t.Context(), snapshots.Info{Name: "active", Labels: limits(32<<20, 0)})
			require.NoError(t, err)
			require.NoError(t, fillMiB(filepath.Join(dir, "large"), 8))
			_, err = h.Update(t.Context(), snapshots.Info{
				Name: "active", Labels: map[string]string{overlayaufs.LabelMaxInodes: "none"},
			}, "labels."+overlayaufs.LabelMaxInodes)
			require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
			require.NoError(t, fillMiB(filepath.Join(dir, "large"), 20), "the limit is what it was")
		})
		doctored(t, union, root)

		fs := filepath.Join(root, "union", "2", "fs")
		_, err := command(background, nil, "chattr", "-p", "5", fs)
		require.NoError(t, err)
		var found []doctor.Finding
		require.NoError(t, lamina.Examine(background, c, func(f doctor.Finding) { found = append(found, f) }))
		require.Equal(t, []doctor.Code{doctor.ContentProject}, codes(found))
		require.Equal(t, "active", found[0].Key)
		withHost(t, c, func(h *host) {
			usage, err := h.Usage(t.Context(), "active")
			require.NoError(t, err)
			require.GreaterOrEqual(t, usage.Size, int64(20<<20), "it is walked")
		})
	})
}

// TestQuotaMissing asks for limits where there are none.
func TestQuotaMissing(t *testing.T) {
	guest.Require(t)
	for name, tt := range map[string]struct {
		disk    disk
		says    string
		counted bool
	}{
		"ext4 without the feature": {disk{fs: "ext4", mkfs: []string{"-q"}}, "tune2fs -O project,quota", false},
		"ext4 without the option":  {disk{fs: "ext4", mkfs: []string{"-q", "-O", "quota,project"}}, "without the option prjquota", true},
		"xfs without the option":   {disk{fs: "xfs", mkfs: []string{"-q"}}, "without the option pquota", false},
	} {
		t.Run(name, func(t *testing.T) {
			root := filepath.Join(tt.disk.mustMountDisk(t), "union")
			_, err := overlayaufs.Open(t.Context(), overlayaufs.Config{Root: root, Quota: "on"})
			require.ErrorContains(t, err, tt.says)
			require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)

			l := openLayers(t, root, overlayaufs.Config{Quota: "strict"})
			first, _ := l.Projects()
			require.Equal(t, tt.counted, first != 0)
			_, err = l.Make(t.Context(), snapshotter.Content{ID: 1}, nil, limits(1<<20, 0))
			require.ErrorContains(t, err, tt.says)
			require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
			_, err = l.Make(t.Context(), snapshotter.Content{ID: 1}, nil, nil)
			require.NoError(t, err)
			_, err = l.Resize(t.Context(), snapshotter.Content{ID: 1}, nil, limits(0, 10))
			require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)

			l = openLayers(t, root, overlayaufs.Config{})
			_, err = l.Make(t.Context(), snapshotter.Content{ID: 2}, nil, limits(1<<20, 0))
			require.NoError(t, err)
			dir, _ := l.mounted([]snapshotter.Content{{ID: 2}}, limits(1<<20, 0))
			require.NoError(t, fillMiB(filepath.Join(dir, "large"), 2))
		})
	}
}
