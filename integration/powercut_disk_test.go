package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/integration/logwrites"
)

// The sizes of a recorded disk and of its log in bytes. All lie in sparse files
// in memory.
const (
	recordedSize = 2 << 30
	recordedLog  = 3 << 30
)

// The device-mapper devices of a recorded disk. By their names a session sweeps
// them away.
const (
	recordingDevice = ourDevices + "powercut-log"
	cutDevice       = ourDevices + "powercut-cut"
)

// A recordedDisk is a file system of which each write is recorded, and what the
// disk holds when the power is cut after any of them.
type recordedDisk struct {
	t      *testing.T
	fstype string
	dir    string // for its files
	mnt    string // where the file system is mounted, when it is
	log    *logwrites.Log

	mu       sync.Mutex
	marks    int
	stopOnce func()

	base     *os.File // what the first done entries of the log make of the disk
	done     int
	cutOff   int // recoveries that undid a commit of the store
	baseLoop string
	cowLoop  string
}

// recordDisk makes a file system, mounts it and records what is written to it,
// until stop.
func recordDisk(t *testing.T, fstype string) *recordedDisk {
	t.Helper()
	d := &recordedDisk{t: t, fstype: fstype, dir: mustTempDir(t)}
	d.mnt = filepath.Join(d.dir, "mnt")
	require.NoError(t, os.Mkdir(d.mnt, 0o700))
	files := filepath.Join(d.dir, "files")
	require.NoError(t, os.Mkdir(files, 0o700))
	require.NoError(t, unix.Mount("lamina-test", files, "tmpfs", 0, fmt.Sprintf("size=%d", int64(recordedLog))))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(files, 0)) })
	d.dir = files
	d.formatBase()
	_, err := command(background, nil, "cp", "--sparse=always", d.file("base"), d.file("disk"))
	require.NoError(t, err)

	table := fmt.Sprintf("0 %d log-writes %s %s", recordedSize/512, mustLoop(t, d.file("disk")), mustDisk(t, d.dir, "log", recordedLog))
	_, err = dmsetup("create", recordingDevice, "--table", table)
	require.NoError(t, err)
	d.stopOnce = sync.OnceFunc(func() {
		require.NoError(t, d.unmount())
		_, err := dmsetup("remove", recordingDevice)
		require.NoError(t, err)
	})
	t.Cleanup(d.stopOnce)
	require.NoError(t, d.mount("/dev/mapper/"+recordingDevice))
	return d
}

func (d *recordedDisk) file(name string) string { return filepath.Join(d.dir, name) }

// formatBase makes the file with the disk as it is when the recording begins.
func (d *recordedDisk) formatBase() {
	d.t.Helper()
	var err error
	d.base, err = os.OpenFile(d.file("base"), os.O_RDWR|os.O_CREATE, 0o600)
	require.NoError(d.t, err)
	d.t.Cleanup(func() { require.NoError(d.t, d.base.Close()) })
	require.NoError(d.t, d.base.Truncate(recordedSize))
	mkfs := []string{"mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1"}
	if d.fstype == "xfs" {
		mkfs = []string{"mkfs.xfs", "-q", "-f"}
	}
	_, err = command(background, nil, append(mkfs, d.file("base"))...)
	require.NoError(d.t, err)
}

// mount mounts the file system on a device. Where the recording and all cuts are
// mounted is one place: the paths in the pool's devices and in the store's stay.
func (d *recordedDisk) mount(device string) error {
	options := ""
	if d.fstype == "ext4" {
		options = "noinit_itable" // nothing is written that nobody asked for
	}
	return os.NewSyscallError("mount", unix.Mount(device, d.mnt, d.fstype, 0, options))
}

func (d *recordedDisk) unmount() error {
	err := unix.Unmount(d.mnt, 0)
	if errors.Is(err, unix.EINVAL) { // it is not mounted
		return nil
	}
	return os.NewSyscallError("unmount", err)
}

// mark writes a mark into the log and returns its name: what a flush has covered
// before comes before it, all else later.
func (d *recordedDisk) mark() string {
	d.t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.marks++
	name := fmt.Sprintf("mark-%d", d.marks)
	_, err := dmsetup("message", recordingDevice, "0", "mark", name)
	require.NoError(d.t, err)
	return name
}

// stop ends the recording and reads the log.
func (d *recordedDisk) stop() {
	d.t.Helper()
	d.stopOnce()
	f, err := os.Open(d.file("log"))
	require.NoError(d.t, err)
	d.t.Cleanup(func() { require.NoError(d.t, f.Close()) })
	d.log, err = logwrites.Read(f, recordedLog)
	require.NoError(d.t, err)
	require.NotEmpty(d.t, d.log.Entries)
	require.Equal(d.t, "dm-log-writes-end", d.log.Entries[len(d.log.Entries)-1].Mark, "the log is full")
	require.NoError(d.t, os.Remove(d.file("disk")))
	d.baseLoop = mustLoop(d.t, d.file("base"))
	d.cowLoop = mustDisk(d.t, d.dir, "cow", recordedSize)
}

// A cut is the power's end: of the log the first from entries are on the disk,
// and of those from there on to at the ones that survive.
type cut struct {
	from, at int
	survives func(entry int) bool
	about    string // how it was chosen
}

func (c cut) String() string {
	return fmt.Sprintf("cut after %d entries (%s)", c.at, c.about)
}

// with calls f when what c leaves is mounted. Cuts come in the order of their
// from. What f does to the disk is gone afterwards.
func (d *recordedDisk) with(c cut, f func() error) (err error) {
	if c.from < d.done {
		return fmt.Errorf("%v: %d entries have been replayed already", c, d.done)
	}
	for ; d.done < c.from; d.done++ {
		if err := d.log.Apply(d.done, d.base); err != nil {
			return err
		}
	}
	table := fmt.Sprintf("0 %d snapshot %s %s N 8", recordedSize/512, d.baseLoop, d.cowLoop)
	if _, err := dmsetup("create", cutDevice, "--table", table); err != nil {
		return err
	}
	defer func() {
		_, failed := dmsetup("remove", cutDevice)
		err = errors.Join(err, failed)
	}()
	device := "/dev/mapper/" + cutDevice
	if err := d.applySurvivors(c, device); err != nil {
		return err
	}
	if err := d.mount(device); err != nil {
		return fmt.Errorf("%w: %w", errLost, err)
	}
	return errors.Join(f(), d.unmount())
}

// applySurvivors writes the entries to the snapshot that the base does not have.
func (d *recordedDisk) applySurvivors(c cut, device string) error {
	if c.from == c.at {
		return nil
	}
	disk, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	for i := c.from; i < c.at && err == nil; i++ {
		if c.survives(i) {
			err = d.log.Apply(i, disk)
		}
	}
	return errors.Join(err, disk.Sync(), disk.Close())
}

// bounded is the context of all that is done after a cut: a pool in a bad state
// may hang.
func bounded(t *testing.T) (context.Context, context.CancelFunc) {
	t.Helper()
	return context.WithTimeout(background, cutTimeout)
}
