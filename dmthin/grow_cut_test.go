package dmthin

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
	"github.com/lamina-snapshotter/lamina/integration/guest"
)

// What a kill leaves at any step of growing is made up for by the next start, with all volumes in use.
func TestKilledWhileGrowing(t *testing.T) {
	const larger = 512 * mebibyte
	loopSteps := []func(t *testing.T, b *testBackend){
		func(t *testing.T, b *testBackend) {
			t.Helper()
			require.NoError(t, lengthenAllocated(b.place.(*loopPlace).metadataFile(), 2*minMetadata))
		},
		func(t *testing.T, b *testBackend) {
			t.Helper()
			require.NoError(t, os.Truncate(b.place.(*loopPlace).dataFile(), larger))
		},
		func(t *testing.T, b *testBackend) {
			t.Helper()
			_, err := b.place.grow(t.Context(), larger, 2*minMetadata)
			require.NoError(t, err)
		},
		func(t *testing.T, b *testBackend) {
			t.Helper()
			s := b.pool.settings
			s.size = larger
			require.NoError(t, b.control.Load(b.pool.name, false, s.target()))
		},
		func(t *testing.T, b *testBackend) {
			t.Helper()
			require.NoError(t, b.control.Suspend(b.pool.name, dm.NoFlush))
		},
	}
	for killed := range len(loopSteps) {
		b := openSmall(t, Config{MaxSize: 1 << 30})
		b.watch.stop(t.Context())
		c := b.mustMake(t, 2, b.template, nil)
		dir, unmount := b.mount(t, c, true)
		writeFile(t, filepath.Join(dir, "file"), "kept")
		for _, step := range loopSteps[:killed+1] {
			step(t, b)
		}
		// The process ends: what it has open goes, and the kernel's state stays.
		require.NoError(t, errors.Join(b.place.close(), b.control.Close()))
		again, err := Open(t.Context(), b.config)
		require.NoError(t, err)
		b.stop = again.Close // for the cleanup
		b = &testBackend{again, b.template}
		require.NoError(t, b.Claim(t.Context(), storeUUID, 2))
		f := b.mustFill(t)
		if killed > 0 {
			require.EqualValues(t, larger, f.dataTotal(), killed)
		}
		require.EqualValues(t, 2*minMetadata, f.metadataTotal(), killed)
		require.Equal(t, "kept", readFile(t, filepath.Join(dir, "file")))
		writeFile(t, filepath.Join(dir, "more"), "written")
		unmount()
		require.NoError(t, b.Close())
	}
}

// Volumes are activated and written while the pool is reloaded over and over, and nobody sees any of it.
func TestReloadIsNotSeen(t *testing.T) {
	b := openSmall(t, Config{MaxSize: 2 << 30, DataSize: 1 << 30})
	var wg sync.WaitGroup
	end := make(chan struct{})
	var longest time.Duration
	c := b.mustMake(t, 2, b.template, nil)
	dir, unmount := b.mount(t, c, true)
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-end:
				return
			default:
			}
			begun := time.Now()
			writeFile(t, filepath.Join(dir, "file"), "written")
			longest = max(longest, time.Since(begun))
		}
	})
	wg.Go(func() {
		for id := uint64(3); ; id++ {
			select {
			case <-end:
				return
			default:
			}
			content := Content{ID: id, Size: b.template.Size}
			_, err := b.Make(t.Context(), Content{ID: id}, []Content{b.template}, nil)
			if err == nil {
				_, err = b.Mounts(t.Context(), []Content{content, b.template}, true, nil)
			}
			if err == nil {
				err = b.Delete(t.Context(), content)
			}
			if err != nil {
				t.Errorf("volume %d: %v", id, err)
				return
			}
		}
	})
	var slowest time.Duration
	const reloads = 100
	for range reloads {
		begun := time.Now()
		require.NoError(t, b.pool.do(t.Context(), func() error {
			target := b.pool.settings.target()
			return b.pool.reload(target, target)
		}, poolLock))
		slowest = max(slowest, time.Since(begun))
	}
	close(end)
	wg.Wait()
	t.Logf("%d reloads, the slowest took %v; the slowest write of a small file took %v", reloads, slowest, longest)
	require.Less(t, slowest, 5*time.Second)
	unmount()
}

// A pool leaves the host's file system its share, and grows into what is made free there.
func TestHostMargin(t *testing.T) {
	guest.Require(t)
	disks := newDisks(t, 1<<30)
	require.NoError(t, runProgram(t.Context(), "mkfs.ext4", "e2fsprogs", nil, "-q", "-m", "0", disks.loops[0].path))
	host := t.TempDir()
	require.NoError(t, mount.All([]mount.Mount{{Type: "ext4", Source: disks.loops[0].path}}, host))
	t.Cleanup(func() { require.NoError(t, mount.UnmountAll(host, 0)) })
	ballast := filepath.Join(host, "ballast")
	require.NoError(t, makeAllocated(ballast, 400*mebibyte))

	b := openSmall(t, Config{Root: filepath.Join(host, "thin"), HostShare: 0.8, BlockSize: mebibyte, Zeroing: off})
	c := b.mustMake(t, 2, b.template, nil)
	device := b.device(t, c)
	_, err := touch(t, device, mebibyte, int(c.Size)/mebibyte)
	require.Error(t, err)
	f := b.mustFill(t)
	require.Zero(t, f.dataFree())
	require.InDelta(t, 550*mebibyte*0.8, float64(f.dataTotal()), 60*mebibyte)
	_, err = b.Make(t.Context(), Content{ID: 3}, []Content{b.template}, nil)
	require.True(t, errdefs.IsResourceExhausted(err), err)
	require.ErrorContains(t, err, "thin.host_share = 0.8): make room there")

	require.NoError(t, os.Remove(ballast))
	b.mustMake(t, 3, b.template, nil)
	require.Greater(t, b.mustFill(t).dataTotal(), f.dataTotal()+100*mebibyte)
	require.NoError(t, b.Delete(t.Context(), Content{ID: 3, Size: c.Size}))

	// A host that is full itself ends the making of volumes while the pool still has blocks.
	free, err := b.place.(*loopPlace).free()
	require.NoError(t, err)
	require.NoError(t, makeAllocated(ballast, free-8*mebibyte))
	require.Positive(t, b.mustFill(t).dataFree())
	_, err = b.Make(t.Context(), Content{ID: 3}, []Content{b.template}, nil)
	require.True(t, errdefs.IsResourceExhausted(err), err)
	require.ErrorContains(t, err, "the file system that the pool lies on is full")
	require.NoError(t, b.Delete(t.Context(), c))
}
