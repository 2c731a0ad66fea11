package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/integration/guest"
)

// TestThinHungDisk has the disk of a pool hang, while a daemon keeps snapshots in
// it and others in directories. Calls for the pool end with their clients' time,
// all others take no notice; so does a start. When the disk answers again all goes
// on, without a restart, and nothing is lost.
func TestThinHungDisk(t *testing.T) {
	guest.Require(t)
	dir := mustTempDir(t)
	slow := mustSlowDisk(t, mustDisk(t, dir, "disk", 512<<20))
	toml := union.toml() + "\n[snapshotters.volumes]\n  backend = \"thin\"\n[thin]\n  pool = \"device\"\n  devices = [" + fmt.Sprintf("%q", slow.path()) + "]\n"
	d := startDaemonWith(t, dir, thinExt4, toml)
	volumes, dirs := d.client("volumes"), d.client(lamina.DefaultName)
	volumes.layer("base", "", []byte("base"))
	volumes.prepare("active", "base", nil)
	volumes.prepare("removed", "base", nil)
	dirs.layer("base", "", []byte("base"))

	slow.suspend()
	require.NoError(t, volumes.Remove(t.Context(), "removed"), "a record goes at once")
	for what, call := range map[string]func(context.Context) error{
		"prepare": func(ctx context.Context) error { _, err := volumes.Prepare(ctx, "new", "base"); return err },
		"commit":  func(ctx context.Context) error { return volumes.Commit(ctx, "done", "active") },
		"cleanup": func(ctx context.Context) error { return volumes.Snapshotter.(snapshots.Cleaner).Cleanup(ctx) },
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		begun := time.Now()
		err := call(ctx)
		cancel()
		t.Logf("%s: %v after %s", what, err, time.Since(begun))
		require.Error(t, err, what)
		require.Less(t, time.Since(begun), 5*time.Second, what)
	}
	begun := time.Now()
	for i := range 10 {
		key := fmt.Sprint(i)
		dirs.prepare(key, "base", nil)
		dirs.requireFile(key, "base", "base")
		dirs.remove(key) // waits for its deletion
	}
	t.Logf("ten snapshots in directories in %s", time.Since(begun))
	require.Less(t, time.Since(begun), 10*time.Second)
	_, err := volumes.Stat(t.Context(), "active")
	require.NoError(t, err, "of the store alone")

	slow.resume()
	require.NoError(t, poll(20*time.Second, func() error {
		_, err := volumes.Prepare(t.Context(), "again", "base")
		return err
	}))
	volumes.requireFile("again", "base", "base")
	require.NoError(t, volumes.Snapshotter.(snapshots.Cleaner).Cleanup(t.Context()))

	volumes.prepare("last", "base", nil)
	slow.suspend()
	require.NoError(t, volumes.Remove(t.Context(), "last"))
	d.stopHung()
	slow.resume()
	select {
	case <-d.done: // a thread that is in a call to the disk keeps the process until that ends
	case <-time.After(stopTimeout):
		t.Fatal("it has not ended")
	}
	d.restart()
	volumes = d.client("volumes")
	volumes.requireFile("again", "base", "base")
	d.stop()
	require.Len(t, volumesOf(dir), 1, "the slow disk")
	d.check()
}

// stopHung tells the daemon to stop, and waits for its word that it does, as long
// as a stop may take while a disk hangs.
func (d *daemon) stopHung() {
	d.t.Helper()
	begun := time.Now()
	require.NoError(d.t, d.cmd.Process.Signal(os.Interrupt))
	require.NoError(d.t, poll(time.Minute, func() error {
		if d.ended() {
			return nil
		}
		if _, closeIt, err := d.connectNow(); err == nil {
			return errors.Join(errors.New("it still serves"), closeIt())
		}
		return nil
	}))
	d.t.Logf("stopped serving after %s", time.Since(begun))
}

// connectNow fails if nobody serves the socket.
func (d *daemon) connectNow() (snapshots.Snapshotter, func() error, error) {
	sn, closeIt, err := d.connect(lamina.DefaultName)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(d.t.Context(), time.Second)
	defer cancel()
	if _, err := sn.Stat(ctx, "base"); err != nil {
		return nil, nil, errors.Join(err, closeIt())
	}
	return sn, closeIt, nil
}

// A slowDisk is a device that is the same as another, and hangs while it is
// suspended.
type slowDisk struct {
	t    *testing.T
	name string
}

func mustSlowDisk(t *testing.T, disk string) slowDisk {
	t.Helper()
	s := slowDisk{t, ourDevices + fmt.Sprint("slow", os.Getpid())}
	size, err := command(background, nil, "blockdev", "--getsz", disk)
	require.NoError(t, err)
	s.dmsetup("create", s.name, "--table", fmt.Sprintf("0 %s linear %s 0", size[:len(size)-1], disk))
	t.Cleanup(func() {
		s.resume()
		s.dmsetup("remove", s.name)
	})
	return s
}

func (s slowDisk) path() string { return "/dev/mapper/" + s.name }
func (s slowDisk) suspend()     { s.dmsetup("suspend", "--noflush", "--nolockfs", s.name) }
func (s slowDisk) resume()      { s.dmsetup("resume", s.name) }

func (s slowDisk) dmsetup(args ...string) {
	s.t.Helper()
	_, err := dmsetup(args...)
	require.NoError(s.t, err)
}
