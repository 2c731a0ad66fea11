package dmthin

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
	"github.com/lamina-snapshotter/lamina/integration/guest"
)

// The suite of snapshotter.Backend is run by package integration: this one may not import it.

// testBackend is a backend on files, with a template as content 1.
type testBackend struct {
	*Backend
	template Content
}

func openBackend(tb testing.TB, c Config) *testBackend {
	tb.Helper()
	guest.Require(tb)
	c.Store, c.DataSize = storeUUID, 1<<30
	if c.Root == "" {
		c.Root = filepath.Join(tb.TempDir(), "thin")
	}
	b, err := Open(tb.Context(), c)
	require.NoError(tb, err)
	tb.Cleanup(func() {
		require.NoError(tb, b.Close())
		mustLoops(tb, c.Root, 0)
	})
	require.NoError(tb, b.Claim(tb.Context(), storeUUID, 1))
	name, err := b.Template(nil)
	require.NoError(tb, err)
	size, err := b.MakeTemplate(tb.Context(), 1, name)
	require.NoError(tb, err)
	return &testBackend{b, Content{ID: 1, Size: size}}
}

func (b *testBackend) mustMake(tb testing.TB, id uint64, below Content, labels map[string]string) Content {
	tb.Helper()
	size, err := b.Make(tb.Context(), Content{ID: id}, []Content{below}, labels)
	require.NoError(tb, err)
	return Content{ID: id, Size: size}
}

// mount mounts a content and returns where, and what unmounts it.
func (b *testBackend) mount(tb testing.TB, c Content, writable bool) (dir string, unmount func()) {
	tb.Helper()
	mounts, err := b.Mounts(tb.Context(), []Content{c, b.template}, writable, nil)
	require.NoError(tb, err)
	dir = tb.TempDir()
	require.NoError(tb, mount.All(mounts, dir))
	done := false
	unmount = func() {
		if !done {
			require.NoError(tb, mount.UnmountAll(dir, 0))
			done = true
		}
	}
	tb.Cleanup(unmount)
	return dir, unmount
}

// A content that was committed while mounted, and whose power went before it was unmounted, is shown with what was synced.
func TestViewReplaysJournal(t *testing.T) {
	for _, kind := range []string{fsExt4, fsXFS} {
		t.Run(kind, func(t *testing.T) {
			b := openBackend(t, Config{FS: kind})
			c := b.mustMake(t, 2, b.template, nil)
			dir, unmount := b.mount(t, c, true)
			_, err := b.Freeze(t.Context(), []Content{c, b.template})
			require.NoError(t, err)
			writeFile(t, filepath.Join(dir, "file"), "synced")
			// What a power cut leaves is like a copy of the volume without freezing its file system.
			require.NoError(t, b.control.Suspend(b.pool.volumeName(2), dm.SkipLockFS))
			err = b.control.CreateSnap(b.pool.name, 3, 2)
			require.NoError(t, errors.Join(err, b.control.Resume(b.pool.volumeName(2))))
			unmount()

			dir, unmount = b.mount(t, Content{ID: 3, Size: c.Size}, false)
			require.Equal(t, "synced", readFile(t, filepath.Join(dir, "file")))
			unmount()
			require.NoError(t, b.Release(t.Context(), 3))
		})
	}
}

// A child has the size of its label, of the configuration or of its parent, the largest that applies, and its file system
// too.
func TestChildGrows(t *testing.T) {
	for _, kind := range []string{fsExt4, fsXFS} {
		t.Run(kind, func(t *testing.T) {
			b := openBackend(t, Config{FS: kind, VolumeSize: 1 << 30})
			chain := b.mustMake(t, 2, b.template, map[string]string{snapshots.LabelSnapshotMaxSize: "2147483648"})
			require.EqualValues(t, 2<<30, chain.Size)
			dir, unmount := b.mount(t, chain, true)
			require.Greater(t, statfs(t, dir).Blocks, uint64(2<<30/4096*9/10))
			writeFile(t, filepath.Join(dir, "file"), "kept")
			unmount()
			_, err := b.Freeze(t.Context(), []Content{chain, b.template})
			require.NoError(t, err)
			same := b.mustMake(t, 3, chain, map[string]string{snapshots.LabelSnapshotMaxSize: "4096"})
			require.EqualValues(t, 2<<30, same.Size, "never smaller than its parent")
			b.config.VolumeSize = 3 << 30
			larger := b.mustMake(t, 4, same, nil)
			require.EqualValues(t, 3<<30, larger.Size)
			dir, unmount = b.mount(t, larger, true)
			require.Equal(t, "kept", readFile(t, filepath.Join(dir, "file")))
			require.Greater(t, statfs(t, dir).Blocks, uint64(3<<30/4096*9/10))
			unmount()
		})
	}
}

// Usage of a mounted content is what it has now.
func TestUsageOfMounted(t *testing.T) {
	b := openBackend(t, Config{})
	c := b.mustMake(t, 2, b.template, nil)
	dir, unmount := b.mount(t, c, true)
	for _, name := range []string{"a", "b", "c"} {
		writeFile(t, filepath.Join(dir, name), string(make([]byte, 1<<20)))
	}
	usage, err := b.Usage(t.Context(), []Content{c, b.template})
	require.NoError(t, err)
	require.EqualValues(t, 3, usage.Inodes)
	require.GreaterOrEqual(t, usage.Size, int64(3<<20))
	unmount()
	require.NoError(t, os.RemoveAll(dir))
	_, err = b.Freeze(t.Context(), []Content{c, b.template})
	require.NoError(t, err)
	frozen, err := b.Usage(t.Context(), []Content{c, b.template})
	require.NoError(t, err)
	require.EqualValues(t, 3, frozen.Inodes)
	require.GreaterOrEqual(t, frozen.Size, usage.Size, "blocks that were changed count too")
}

// The usage of a frozen content is what the pool has back when it is deleted, also for blocks that were only changed, and
// whether it is known that it was frozen or not.
func TestUsageIsWhatDeletingGivesBack(t *testing.T) {
	for _, kind := range []string{fsExt4, fsXFS} {
		t.Run(kind, func(t *testing.T) {
			b := openBackend(t, Config{FS: kind})
			chain := []Content{b.template}
			for id := range uint64(3) {
				c := b.mustMake(t, id+2, chain[0], nil)
				dir, unmount := b.mount(t, c, true)
				writeFile(t, filepath.Join(dir, "changed"), strings.Repeat(number(uint32(id)), 1<<20))
				writeFile(t, filepath.Join(dir, number(uint32(id))), string(make([]byte, 1<<20)))
				unmount()
				chain = append([]Content{c}, chain...)
				_, err := b.Freeze(t.Context(), chain)
				require.NoError(t, err)
			}
			b.facts = nil // as after a restart
			for len(chain) > 1 {
				begun := time.Now()
				usage, err := b.Usage(t.Context(), chain)
				require.NoError(t, err)
				t.Logf("%d bytes in %v", usage.Size, time.Since(begun))
				before, err := b.pool.Status(t.Context())
				require.NoError(t, err)
				require.NoError(t, b.Delete(t.Context(), chain[0]))
				after, err := b.pool.Status(t.Context())
				require.NoError(t, err)
				require.EqualValues(t, usage.Size, (before.DataUsed-after.DataUsed)*b.pool.block)
				require.Greater(t, usage.Size, int64(2<<20))
				chain = chain[1:]
			}
		})
	}
}

// A start that fails leaves nothing behind that is in the way of who repairs the pool.
func TestFailedStartIsUndone(t *testing.T) {
	guest.Require(t)
	root := filepath.Join(t.TempDir(), "thin")
	open := func() *Backend {
		b, err := Open(t.Context(), Config{Root: root, Store: storeUUID, DataSize: 1 << 30})
		require.NoError(t, err)
		return b
	}
	b := open()
	require.NoError(t, b.Claim(t.Context(), storeUUID, 1))
	require.NoError(t, b.Close())
	f, err := os.OpenFile(filepath.Join(root, "metadata"), os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("damage"), 200)
	require.NoError(t, errors.Join(err, f.Close()))

	b = open()
	_, _, err = b.Owner(t.Context())
	require.ErrorContains(t, err, "damaged")
	require.Error(t, b.Claim(t.Context(), storeUUID, 2))
	mustLoops(t, root, 0)
	require.NoError(t, b.Close())
}

// Force takes what belongs to another store, and leaves this store's own pool to the usual check.
func TestForceSparesOwnPool(t *testing.T) {
	guest.Require(t)
	root := t.TempDir()
	c := Config{Root: filepath.Join(root, "thin"), Store: storeUUID, DataSize: 1 << 30}
	b, err := Open(t.Context(), c)
	require.NoError(t, err)
	require.NoError(t, b.Claim(t.Context(), storeUUID, 7))
	require.NoError(t, b.Close())
	c.Force = true
	b, err = Open(t.Context(), c)
	require.NoError(t, err)
	uuid, start, err := b.Owner(t.Context())
	require.NoError(t, err)
	require.Equal(t, storeUUID, uuid)
	require.EqualValues(t, 7, start)
	require.NoError(t, b.Close())
	c.Store = testUUID
	b, err = Open(t.Context(), c)
	require.NoError(t, err)
	uuid, _, err = b.Owner(t.Context())
	require.NoError(t, err)
	require.Empty(t, uuid)
	require.NoError(t, b.Close())
}

// A volume that a process left suspended when it died hangs nobody after the next start.
func TestOpenResumes(t *testing.T) {
	b := openBackend(t, Config{})
	c := b.mustMake(t, 2, b.template, nil)
	_, err := b.Mounts(t.Context(), []Content{c, b.template}, true, nil)
	require.NoError(t, err)
	name := b.pool.volumeName(2)
	require.NoError(t, b.control.Suspend(name, 0))
	require.NoError(t, resumeAll(b.control, prefix(storeUUID), storeUUID))
	info, err := b.control.Info(name)
	require.NoError(t, err)
	require.False(t, info.Suspended)
}

// What is missing in the pool is said as such, and what is mounted is not deleted.
func TestMissingAndBusy(t *testing.T) {
	b := openBackend(t, Config{})
	_, err := b.Mounts(t.Context(), []Content{{ID: 99, Size: 1 << 30}, b.template}, true, nil)
	require.ErrorIs(t, err, fs.ErrNotExist)
	c := b.mustMake(t, 2, b.template, nil)
	_, unmount := b.mount(t, c, true)
	require.ErrorIs(t, b.Delete(t.Context(), c), unix.EBUSY)
	unmount()
	require.NoError(t, b.Delete(t.Context(), c))
	ids, err := b.List(t.Context())
	require.NoError(t, err)
	require.Equal(t, []uint64{1}, ids)
}
