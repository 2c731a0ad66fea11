package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// What a [matrix] does at starts and stops.

// first kills the daemon at each point of its first start: the store, the place
// and the template are made.
func (m matrix) first(t *testing.T) {
	t.Helper()
	toml := m.toml
	m.start()
	points := m.crashPoints(slices.DeleteFunc(m.passed(), func(name string) bool {
		return m.backend.name == thinExt4.name && !torture() && slices.Contains(madeOnce, name)
	}))
	m.end(t)
	for _, p := range points {
		m.again(t, toml, p)
	}
	m.place(newDaemon(t, mustTempDir(t), m.backend, toml))
	t.Logf("first start: killed at %v", points)
}

// again kills a first start in a new directory, and then has it work.
func (m matrix) again(t *testing.T, toml string, p crashPoint) {
	t.Helper()
	m.place(newDaemon(t, mustTempDir(t), m.backend, toml))
	require.NoError(t, m.dieStarting(p.String()), "first start")
	m.start()
	m.h.layer("base", "", []byte("base"))
	require.NoError(t, m.shows("base", []string{"base"}), p)
	m.remove()
	m.stop()
	k, err := readStore(m.dir, m.root())
	require.NoError(t, err)
	require.Empty(t, k.trash, p)
	require.Empty(t, kernelDevices(ourDevices+k.uuid[:8]), p)
	require.Empty(t, loopsOf(m.root()), p)
	require.NoError(t, os.RemoveAll(m.root()))
	if t.Failed() {
		t.Fatalf("first start, %s", p)
	}
}

// end removes all snapshots and stops the daemon, which leaves nothing.
func (m matrix) end(t *testing.T) {
	t.Helper()
	m.remove()
	m.stop()
	require.Zero(t, m.check())
	m.backend.check(t, m.root())
	require.NoError(t, os.RemoveAll(m.root()))
}

// starts kills the daemon at each point of a start that finds an orphan, which is
// a content without a record, an active snapshot and a view. change comes between
// the death and the start. Of the points there may be named those that matter.
func (m matrix) starts(t *testing.T, name string, change func(n int), matter ...string) {
	t.Helper()
	within(t, m.h.prepare("kept", "base", nil), func(dir string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "kept"), []byte("kept"), 0o600))
	})
	_, err := m.h.View(t.Context(), "shown", "base")
	require.NoError(t, err)
	orphan := func(ctx context.Context) error {
		_, err := m.h.Prepare(ctx, "orphan", "base")
		return err
	}
	want := m.listing()
	require.NoError(t, m.dieIn("create.made", orphan))
	change(0)
	m.start()
	points := m.crashPointsOf(slices.DeleteFunc(m.passed(), func(name string) bool {
		return len(matter) > 0 && !slices.ContainsFunc(matter, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
	}))
	require.NotEmpty(t, points, name)
	for i, p := range points {
		require.NoError(t, m.dieIn("create.made", orphan))
		change(i + 1)
		require.NoError(t, m.dieStarting(p.String()), name)
		_, err := readStore(m.dir, m.root())
		require.NoError(t, err)
		m.start()
		require.Equal(t, want, m.listing(), p)
		require.NoError(t, m.shows("kept", []string{"base", "kept"}), p)
		require.NoError(t, m.shows("shown", []string{"base"}), p)
		if t.Failed() {
			t.Fatalf("%s, %s", name, p)
		}
	}
	m.requireNoLeak(t)
	t.Logf("%s: killed at %v", name, points)
	m.reset()
}

// undoes kills the daemon while it undoes a commit that another kill has cut off.
func (m matrix) undoes(t *testing.T) {
	t.Helper()
	want := m.listing()
	for _, name := range []string{"store.undo", "store.undone"} {
		require.NoError(t, m.dieIn("store.written", func(ctx context.Context) error {
			_, err := m.h.Prepare(ctx, "cut off", "base")
			return err
		}))
		require.NoError(t, m.dieStarting(name))
		m.start()
		require.Equal(t, want, m.listing(), name)
	}
	m.requireNoLeak(t)
}

// stops kills the daemon at each point of a stop.
func (m matrix) stops(t *testing.T) {
	t.Helper()
	m.h.prepare("kept", "base", nil)
	want := m.listing()
	m.clear()
	m.stop()
	points := m.crashPoints(m.passed())
	m.start()
	for _, p := range points {
		m.arm(p.String())
		require.NoError(t, m.cmd.Process.Signal(syscall.SIGTERM))
		require.NoError(t, m.dies(p.String()), "stop")
		m.start()
		require.Equal(t, want, m.listing(), p)
		if t.Failed() {
			t.Fatalf("stop, %s", p)
		}
	}
	m.requireNoLeak(t)
	t.Logf("stop: killed at %v", points)
	m.reset()
}

// reboot takes away what the kernel has, as a machine does that is switched off.
func (m matrix) reboot() {
	m.t.Helper()
	require.NoError(m.t, removeDevices(m.root()))
}

// disks kills the daemon at each point of a first start on block devices.
func (m matrix) disks(t *testing.T) {
	t.Helper()
	m.end(t)
	dir := mustTempDir(t)
	paths := []string{mustDisk(t, dir, "a", 512<<20), mustDisk(t, dir, "b", 512<<20)}
	toml := thinExt4.toml() + fmt.Sprintf("  pool = \"device\"\n  devices = [%q, %q]\n", paths[0], paths[1])
	fresh := func() {
		for _, path := range paths {
			wipe(t, path, 512<<20)
		}
		m.place(newDaemon(t, mustTempDir(t), m.backend, toml))
	}
	fresh()
	m.start()
	points := m.crashPoints(slices.DeleteFunc(m.passed(), func(name string) bool {
		return !strings.HasPrefix(name, "disk.") && !strings.HasPrefix(name, "thin.device-")
	}))
	m.stop()
	for _, p := range points {
		fresh()
		require.NoError(t, m.dieStarting(p.String()), "first start on disks")
		m.start()
		m.h.layer("base", "", []byte("base"))
		require.NoError(t, m.shows("base", []string{"base"}), p)
		m.stop()
		require.Equal(t, 1, m.check())
		if t.Failed() {
			t.Fatalf("first start on disks, %s", p)
		}
	}
	t.Logf("first start on disks: killed at %v", points)
	m.place(newDaemon(t, mustTempDir(t), m.backend, growing(1)))
	m.start()
}

// fullDisk kills the daemon at each point of a start on a disk that is full, where
// it gives up the reserve that an earlier start took.
func (m matrix) fullDisk(t *testing.T) {
	t.Helper()
	disk := mountDisk(t, "ext4")
	d := newDaemon(t, mustTempDir(t), m.backend, m.toml)
	d.rootDir = filepath.Join(disk, "root")
	require.NoError(t, d.configure(m.toml))
	m.place(d)
	m.start()
	m.h.layer("base", "", []byte("base"))
	m.write("kept", "base")
	want := m.listing()
	refill := func() {
		removeFillers(t, disk)
		m.kill()
		m.start() // which takes the reserve
		require.FileExists(t, filepath.Join(m.root(), "union", ".reserve"))
		m.kill()
		fill(t, disk)
	}
	refill()
	m.start()
	points := m.crashPoints(slices.DeleteFunc(m.passed(), func(name string) bool { return !strings.HasPrefix(name, "union.") }))
	require.Contains(t, points, crashPoint{"union.reserve-given-up", 1})
	for _, p := range points {
		refill()
		require.NoError(t, m.dieStarting(p.String()), "start on a full disk")
		m.start()
		require.Equal(t, want, m.listing(), p)
		require.NoError(t, m.shows("kept", []string{"base", "kept"}), p)
		if t.Failed() {
			t.Fatalf("start on a full disk, %s", p)
		}
	}
	removeFillers(t, disk)
	m.remove()
	m.stop()
	m.backend.check(t, m.root())
	t.Logf("start on a full disk: killed at %v", points)
}

// removeFillers undoes fill.
func removeFillers(t *testing.T, dir string) {
	t.Helper()
	for _, pattern := range []string{"filler", "small*"} {
		names, err := filepath.Glob(filepath.Join(dir, pattern))
		require.NoError(t, err)
		for _, name := range names {
			require.NoError(t, os.Remove(name))
		}
	}
}

// wipe makes a disk blank.
func wipe(t *testing.T, path string, size int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt(make([]byte, 8<<20), 0)
	_, endErr := f.WriteAt(make([]byte, 1<<20), size-1<<20)
	require.NoError(t, errors.Join(err, endErr, f.Sync(), f.Close()))
}
