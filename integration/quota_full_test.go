package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/overlayaufs"
)

// fillInodes makes files until it has that many, or an error.
func fillInodes(path string, files int) error {
	for i := range files {
		if err := os.WriteFile(fmt.Sprint(path, i), nil, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// TestQuotaFull starts containers again that have hit their limits, and deletes files in them.
func TestQuotaFull(t *testing.T) {
	forEachQuota(t, func(t *testing.T, d disk, mnt string) {
		t.Helper()
		for i, volatile := range []string{"off", "on"} {
			l := openLayers(t, filepath.Join(mnt, "union-"+volatile), overlayaufs.Config{Quota: "on", Volatile: overlayaufs.Switch(volatile)})
			l.project += uint32(100 * i) // both are on one file system
			base := l.base()
			for i, tt := range []struct{ bytes, inodes int }{{8 << 20, 0}, {0, 50}, {512, 1}} {
				labels := limits(tt.bytes, tt.inodes)
				chain := l.layer(uint64(2+i), base, labels)
				dir, unmount := l.mounted(chain, labels)
				for range 2 {
					if tt.inodes > 0 {
						require.ErrorIs(t, fillInodes(filepath.Join(dir, "n"), 200), d.full, "%+v", tt)
					}
					if tt.bytes > 0 && tt.inodes == 0 {
						require.ErrorIs(t, fillMiB(filepath.Join(dir, "large"), 9), d.full, "%+v", tt)
					}
					unmount()
					dir, unmount = l.mounted(chain, labels)
					require.NoError(t, os.RemoveAll(filepath.Join(dir, "large")), "%+v", tt)
					require.NoError(t, os.RemoveAll(filepath.Join(dir, "n1")), "%+v", tt)
					require.NoError(t, os.WriteFile(filepath.Join(dir, "small"), []byte("small"), 0o600), "%+v", tt)
				}
				unmount()
			}
		}
	})
}

// TestQuotaRoom starts a container again and again that fills what it gets for the mount each time. It gets no more than so much,
// and is then refused where the kernel would not mount it, until its limit is raised.
func TestQuotaRoom(t *testing.T) {
	forEachQuota(t, func(t *testing.T, d disk, mnt string) {
		t.Helper()
		l := openLayers(t, filepath.Join(mnt, "union"), overlayaufs.Config{Quota: "on"})
		labels := limits(8<<20, 0)
		chain := l.layer(2, l.base(), labels)
		starts := 0
		for ; starts < 70; starts++ {
			if _, err := l.Mounts(t.Context(), chain, true, labels); err != nil {
				require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
				break
			}
			dir, unmount := l.mounted(chain, labels)
			require.ErrorIs(t, fillMiB(filepath.Join(dir, fmt.Sprint(starts)), 9), d.full)
			unmount()
		}
		t.Logf("%d starts", starts)
		usage, err := l.Usage(t.Context(), chain)
		require.NoError(t, err)
		require.Greater(t, usage.Size, int64((8+60)<<20))
		require.LessOrEqual(t, usage.Size, int64((8+64)<<20))
		if d.fs == "xfs" {
			require.Less(t, starts, 70)
		} else {
			require.Equal(t, 70, starts)
		}
		raised := limits(100<<20, 0)
		_, err = l.Resize(t.Context(), chain[0], chain[1:], raised)
		require.NoError(t, err)
		dir, unmount := l.mounted(chain, raised)
		defer unmount()
		require.NoError(t, fillMiB(filepath.Join(dir, "more"), 9))
	})
}

// TestQuotaOff turns quotas off where there are contents with limits: these are lifted, and no project is left behind.
func TestQuotaOff(t *testing.T) {
	forEachQuota(t, func(t *testing.T, d disk, mnt string) {
		t.Helper()
		root, labels := filepath.Join(mnt, "union"), limits(1<<20, 0)
		l := openLayers(t, root, overlayaufs.Config{Quota: "on"})
		base := l.base()
		chain, unknown := l.layer(2, base, labels), l.layer(3, base, labels)
		dir, unmount := l.mounted(chain, labels)
		require.ErrorIs(t, fillMiB(filepath.Join(dir, "large"), 9), d.full)
		unmount()

		l = openLayers(t, root, overlayaufs.Config{Quota: "off"})
		require.Equal(t, `none: union.quota is "off"`, l.Quotas())
		first, last := l.Projects()
		require.Zero(t, first+last)
		dir, unmount = l.mounted(chain, labels)
		require.NoError(t, fillMiB(filepath.Join(dir, "large"), 9))
		unmount()
		_, err := l.Resize(t.Context(), chain[0], base, limits(1<<20, 1))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(root, "2", "fs", "more"), nil, 0o600))
		l.requireUsage(chain)
		require.NoError(t, l.Delete(t.Context(), chain[0]))
		require.NoError(t, l.Delete(t.Context(), overlayaufs.Content{ID: 3}))
		for _, c := range []overlayaufs.Content{chain[0], unknown[0]} {
			taken, err := l.ProjectTaken(c.Project)
			require.NoError(t, err)
			require.False(t, taken, "%+v", c)
		}
	})
}
