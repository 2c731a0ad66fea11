package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina"
)

// TestThinRestart stops and starts the daemon: the volume of a container that
// runs stays, and the container does not notice; idle ones go and come back.
func TestThinRestart(t *testing.T) {
	forEachThin(t, func(t *testing.T, b backend) {
		t.Helper()
		d := startDaemon(t, mustTempDir(t), b)
		h := d.client(lamina.DefaultName)
		h.layer("base", "", []byte("base"))
		h.prepare("idle", "base", nil)
		mounts := h.prepare("running", "base", nil)
		view, err := h.View(t.Context(), "view", "base")
		require.NoError(t, err)
		within(t, view, func(viewed string) {
			within(t, mounts, func(dir string) {
				d.stop()
				require.ElementsMatch(t, []string{"pool", base(mounts), base(view)}, activeIn(d.root()))
				require.NoError(t, os.WriteFile(filepath.Join(dir, "while"), []byte("stopped"), 0o600))
				require.FileExists(t, filepath.Join(viewed, "base"))

				d.restart()
				h = d.client(lamina.DefaultName)
				again, err := h.Mounts(t.Context(), "running")
				require.NoError(t, err)
				require.Equal(t, mounts, again)
				require.NoError(t, os.WriteFile(filepath.Join(dir, "then"), []byte("started"), 0o600))
				h.requireFile("idle", "base", "base")
			})
		})
		h.requireFile("running", "while", "stopped")
		h.remove("idle", "view")
		d.stop()
		checkPool(t, d.root())
	})
}

// base returns the part of a device's name that is the volume's own.
func base(mounts []mount.Mount) string {
	return mounts[0].Source[strings.LastIndex(mounts[0].Source, "-")+1:]
}

// activeIn returns the parts of their names that are the devices' own.
func activeIn(root string) (names []string) {
	for _, v := range volumesOf(root) {
		names = append(names, v.name[strings.LastIndex(v.name, "-")+1:])
	}
	return names
}

// TestThinReboot takes away all devices, as a machine does that is switched off
// with the daemon running: all that was there is found again.
func TestThinReboot(t *testing.T) {
	forEachThin(t, func(t *testing.T, b backend) {
		t.Helper()
		d := startDaemon(t, mustTempDir(t), b)
		h := d.client(lamina.DefaultName)
		h.layer("one", "", []byte("1"))
		h.layer("two", "one", []byte("2"))
		within(t, h.prepare("active", "two", nil), func(dir string) {
			require.NoError(t, os.WriteFile(filepath.Join(dir, "written"), []byte("before"), 0o600))
		})
		view, err := h.View(t.Context(), "view", "two")
		require.NoError(t, err)
		d.kill()
		require.NoError(t, removeDevices(d.root()))
		require.Empty(t, volumesOf(d.root()))
		require.Empty(t, loopsOf(d.root()))
		unix.Sync()
		checkPool(t, d.root())

		d.restart()
		h = d.client(lamina.DefaultName)
		for name, content := range map[string]string{"one": "1", "two": "2", "written": "before"} {
			h.requireFile("active", name, content)
		}
		again, err := h.Mounts(t.Context(), "view")
		require.NoError(t, err)
		require.Equal(t, view, again)
		within(t, again, func(dir string) { require.FileExists(t, filepath.Join(dir, "two")) })
		h.layer("three", "two", []byte("3"))
		h.remove("active", "view", "three", "two", "one")
		d.stop()
		require.Zero(t, d.check())
		checkPool(t, d.root())
	})
}
