package dmthin

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
)

// The node of a volume goes at once, though its device does at its last close, and comes back if the volume is wanted again.
func TestNodeOfAPendingVolume(t *testing.T) {
	p := newPool(t)
	ctx := t.Context()
	require.NoError(t, p.Create(ctx, 1))
	user := p.pending(t, false)
	mustNoNode(t, p.Path(1))
	device, err := p.Activate(ctx, 1, testVolume, false)
	require.NoError(t, err)
	require.FileExists(t, device)
	require.NoError(t, user.Close())

	user = p.pending(t, false)
	require.NoError(t, user.Close())
	require.Eventually(t, func() bool {
		_, err := p.volume(1)
		return errors.Is(err, os.ErrNotExist)
	}, 10*time.Second, time.Millisecond)
	mustNoNode(t, p.Path(1))
}

func mustNoNode(t *testing.T, path string) {
	t.Helper()
	_, err := os.Lstat(path)
	require.ErrorIs(t, err, os.ErrNotExist)
}

// Nodes that a killed process left without devices go at the next start and at the stop; others stay.
func TestStaleNodes(t *testing.T) {
	p := newPool(t)
	ctx := t.Context()
	require.NoError(t, p.Create(ctx, 1))
	device, err := p.Activate(ctx, 1, testVolume, false)
	require.NoError(t, err)
	prefix := dm.Node(p.prefix)
	clean := map[string]func() error{
		"start": func() error { _, err := startPool(ctx, p.control, p.settings(t)); return err },
		"stop":  func() error { _, err := p.Stop(ctx); return err },
	}
	user, err := os.Open(device)
	require.NoError(t, err)
	for what, clean := range clean {
		t.Run(what, func(t *testing.T) {
			stay := []string{prefix + "-0x", prefix + "-02", prefix + "x-3"}
			require.NoError(t, unix.Mknod(prefix+"-2", unix.S_IFBLK|0o600, int(unix.Mkdev(p.dev.Major, p.dev.Minor))))
			require.NoError(t, os.Symlink("../dm-99999", prefix+"-3"))
			require.NoError(t, os.Symlink("../null", prefix+"-5"))
			for _, path := range stay {
				require.NoError(t, os.Symlink("../dm-99999", path))
			}
			t.Cleanup(func() {
				for _, path := range stay {
					require.NoError(t, os.Remove(path))
				}
			})
			require.NoError(t, clean())
			mustNoNode(t, prefix+"-2")
			mustNoNode(t, prefix+"-3")
			mustNoNode(t, prefix+"-5")
			require.FileExists(t, device)
		})
	}
	require.NoError(t, user.Close())
}
