package dmthin

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/integration/guest"
)

func idMapLabels(users, groups string) map[string]string {
	return map[string]string{snapshots.LabelSnapshotUIDMapping: users, snapshots.LabelSnapshotGIDMapping: groups}
}

// mountMapped mounts a content as containerd does it, with what the labels ask for.
func (b *testBackend) mountMapped(t *testing.T, c Content, writable bool, labels map[string]string) (dir string, unmount func()) {
	t.Helper()
	mounts, err := b.Mounts(t.Context(), []Content{c, b.template}, writable, labels)
	require.NoError(t, err)
	dir = t.TempDir()
	require.NoError(t, mount.All(mounts, dir))
	done := false
	unmount = func() {
		if !done {
			done = true
			require.NoError(t, mount.UnmountMounts(mounts, dir, 0))
		}
	}
	t.Cleanup(unmount)
	return dir, unmount
}

func ownerOf(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(path, &st), path)
	return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
}

// One layer is mounted with two maps at once and without one, and nothing on its volume changes.
func TestMapped(t *testing.T) {
	for _, kind := range []string{fsExt4, fsXFS} {
		t.Run(kind, func(t *testing.T) {
			b := openBackend(t, Config{FS: kind})
			layer := b.mustMake(t, 2, b.template, nil)
			dir, unmount := b.mount(t, layer, true)
			writeFile(t, filepath.Join(dir, "root"), "r")
			writeFile(t, filepath.Join(dir, "user"), "u")
			require.NoError(t, os.Chown(filepath.Join(dir, "user"), 1000, 1000))
			unmount()
			_, err := b.Freeze(t.Context(), []Content{layer, b.template})
			require.NoError(t, err)

			several := idMapLabels("0:100000:1000,1000:500000:1", "0:200000:1000,1000:600000:1")
			other := idMapLabels("0:300000:65536", "0:300000:65536")
			child := b.mustMake(t, 3, layer, several)
			first, unmountFirst := b.mountMapped(t, child, true, several)
			second, unmountSecond := b.mountMapped(t, b.mustMake(t, 4, layer, other), true, other)
			view, unmountView := b.mountMapped(t, layer, false, several)
			for path, want := range map[string]string{
				first: "100000:200000", filepath.Join(first, "root"): "100000:200000", filepath.Join(first, "user"): "500000:600000",
				second: "300000:300000", filepath.Join(second, "user"): "301000:301000",
				view: "100000:200000", filepath.Join(view, "user"): "500000:600000",
			} {
				require.Equal(t, want, ownerOf(t, path), path)
			}
			require.NoError(t, os.Chown(filepath.Join(first, "root"), 500000, 600000))
			require.ErrorIs(t, os.WriteFile(filepath.Join(view, "new"), nil, 0o600), unix.EROFS)
			for _, unmount := range []func(){unmountFirst, unmountSecond, unmountView} {
				unmount()
			}
			require.NoError(t, b.Release(t.Context(), layer.ID))

			// As the layer has them, without a map; and so can a child be committed.
			_, err = b.Freeze(t.Context(), []Content{child, layer, b.template})
			require.NoError(t, err)
			for c, want := range map[Content]string{child: "1000:1000", layer: "0:0"} {
				dir, unmount := b.mount(t, c, false)
				require.Equal(t, want, ownerOf(t, filepath.Join(dir, "root")))
				require.Equal(t, "1000:1000", ownerOf(t, filepath.Join(dir, "user")))
				require.Equal(t, "0:0", ownerOf(t, dir))
				unmount()
				require.NoError(t, b.Release(t.Context(), c.ID))
			}
		})
	}
}

func TestMapRefused(t *testing.T) {
	b := openBackend(t, Config{})
	bad := idMapLabels("0:1:x", "0:1:1")
	_, err := b.Make(t.Context(), Content{ID: 2}, []Content{b.template}, bad)
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	require.ErrorContains(t, err, snapshots.LabelSnapshotUIDMapping+` = "0:1:x"`)
	ids, err := b.List(t.Context())
	require.NoError(t, err)
	require.Equal(t, []uint64{1}, ids, "nothing was made")
	_, err = b.Mounts(t.Context(), []Content{b.template}, false, bad)
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
}

func TestProbeIDMap(t *testing.T) {
	guest.Require(t)
	for _, kind := range []string{fsExt4, fsXFS} {
		begun := time.Now()
		require.NoError(t, ProbeIDMap(t.Context(), Config{FS: kind}), kind)
		t.Logf("%s: %v", kind, time.Since(begun))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, ProbeIDMap(ctx, Config{}), context.Canceled)
	t.Setenv("PATH", "")
	require.Error(t, ProbeIDMap(t.Context(), Config{FS: "vfat"}))

	mounts, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	require.NotContains(t, string(mounts), "memfd")
	backing, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	require.NoError(t, err)
	for _, path := range backing {
		file, err := os.ReadFile(path)
		if err == nil {
			require.False(t, strings.Contains(string(file), "memfd:lamina"), "%s is behind %s", file, path)
		}
	}
}
