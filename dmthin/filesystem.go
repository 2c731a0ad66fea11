package dmthin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/treediff"
	"github.com/lamina-snapshotter/lamina/internal/failpoint"
)

// A filesystem is what a volume is formatted with. It holds no state; each has a file of its own.
type filesystem interface {
	// String returns the name by which the kernel, containerd and the configuration know it.
	String() string

	// parse reads the superblock in the first fsHeadSize bytes of a device. errNoFilesystem says that there is none of
	// this kind; any other error, what is wrong with the one that there is.
	parse(head []byte) (fsState, error)

	// uuid returns what the superblock in head, which parse has read, calls the file system. Copies have one uuid.
	uuid(head []byte) []byte

	// changedInodes returns the inodes that may differ in two volumes that are mounted, and do not change. An error says that it
	// cannot be told.
	changedInodes(ctx context.Context, t *trees, pool *Pool) (treediff.Inodes, error)

	// mountOptions returns what containerd is to mount a volume with. Read-only, nothing is written to the device: a
	// journal that is not empty is passed over.
	mountOptions(readOnly bool) []string

	// ownMount returns the options with which this package mounts a volume: to write to what is there, or to grow it.
	ownMount(toGrow bool) []string

	// growing returns the options with which a file system that is mounted grows, and those with which it goes on.
	growing() (meanwhile, after string)

	// replaysGrowth reports whether every kernel can replay a journal in which the file system grows and the new room is used.
	replaysGrowth() bool

	// resize makes the file system that root is the root directory of as large as blocks says.
	resize(root *os.File, state fsState, blocks uint64) error

	// mend makes up for what a kernel that could not write to a device did to it when it was unmounted, and reports whether
	// there was anything.
	mend(device string) (mended bool, err error)

	// command returns how an empty volume of size bytes is formatted.
	command(device string, size uint64) mkfs

	// small returns how a device of trialSize bytes is formatted that is to be looked at and thrown away: the first of these
	// that mkfs takes.
	small(device string) []mkfs
}

// fsState is what a superblock says.
type fsState struct {
	blockSize  uint64 // bytes
	blocks     uint64 // how long the file system is
	inodes     int64  // in use; when that is up to date, see inodes
	errors     bool   // the kernel or a check has found damage in it
	dirty      bool   // the journal may hold what the rest of the device does not yet
	maxInodes  uint32 // xfs: percentage of the space that inodes may take
	tailBlocks uint64 // an end of the device of fewer blocks than that stays unused
}

// errNoFilesystem is returned when a device holds none of the file systems that this package knows.
var errNoFilesystem = errors.New("no file system that is known: neither ext4 nor xfs")

func filesystems() []filesystem { return []filesystem{ext4{}, xfs{}} }

// fsByName returns the file system that a configuration names.
func fsByName(name string) (filesystem, error) {
	for _, fs := range filesystems() {
		if fs.String() == name {
			return fs, nil
		}
	}
	return nil, fmt.Errorf("the file system %q is none of %v", name, filesystems())
}

// probe tells which file system a device holds. One that holds none is errNoFilesystem.
func probe(device string) (filesystem, error) {
	fs, _, err := readState(device)
	return fs, err
}

func readState(device string) (filesystem, fsState, error) {
	head, err := readHead(device)
	if err != nil {
		return nil, fsState{}, err
	}
	fs, state, err := parseHead(head)
	if err != nil {
		return nil, fsState{}, fmt.Errorf("read the superblock of %s: %w", device, err)
	}
	return fs, state, nil
}

func parseHead(head []byte) (filesystem, fsState, error) {
	for _, fs := range filesystems() {
		if state, err := fs.parse(head); !errors.Is(err, errNoFilesystem) {
			return fs, state, err
		}
	}
	if blank(head) {
		return nil, fsState{}, fmt.Errorf("it is blank: %w", errNoFilesystem)
	}
	return nil, fsState{}, errNoFilesystem
}

// fsHeadSize is how many bytes of a device are read: both superblocks are within them, and direct I/O can read as many
// from any device.
const fsHeadSize = 4096

// readHead reads the start of a device as it is on the device. XFS writes past the page cache of its device, so the pages
// that were read before it was mounted, by an earlier probe, are stale until nobody has the device open; hence direct I/O.
// ext4 keeps its superblock in that page cache, and a direct read writes it out first.
func readHead(device string) ([]byte, error) {
	f, err := openDirect(device, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // nothing was written through it
	head := make([]byte, fsHeadSize)
	if n, err := f.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("%w after %d bytes", err, n)
	}
	return head, nil
}

func blank(b []byte) bool { return bytes.Count(b, []byte{0}) == len(b) }

// inodes returns how many inodes the file system on a device uses, by the counters in its superblock. Those that the file
// system has for itself are among them (10 of ext4, 3 of xfs), so what counts is the difference between a volume and its
// parent; so are files that were removed while open.
//
// The counters on the device are up to date when the file system was unmounted, and when it was frozen, as [Pool.Flush]
// and [Pool.Snapshot] do, until it is written again. While it is mounted they stay at what they were when that last
// happened, or nearly: neither fsync nor sync nor time brings them up to date, on ext4 (whose superblock lies in the
// page cache of the device) as little as on xfs. Linux 6.1 was asked; later ones write that of ext4 now and then. After a
// crash they are what they were before the mount, until replay and the first unmounting. The device must not be
// suspended, or this waits until it is resumed.
func inodes(device string) (used int64, err error) {
	_, state, err := readState(device)
	return state.inodes, err
}

// inodesInUse is inodes for a device that somebody has open: if the file system is mounted, it is asked itself.
//
// It must be open, as this would mount it otherwise. If it is not mounted any more, or is something else that has it open,
// no harm is done: it is a mount like that of a client, who may mount it at the same time.
func inodesInUse(device string) (used int64, err error) {
	fs, state, err := readState(device)
	if err != nil {
		return 0, err
	}
	root, err := openRoot(fs, device, fs.ownMount(false))
	if errors.Is(err, unix.EBUSY) { // mounted read-only, so that the superblock is up to date
		return state.inodes, nil
	}
	if err != nil {
		return 0, err
	}
	var st unix.Statfs_t
	err = unix.Fstatfs(int(root.Fd()), &st)
	return int64(st.Files - st.Ffree), errors.Join(err, root.Close())
}

// replay writes what the journal of the file system on a device holds to where it belongs, by mounting it. It is to be
// called before the volume is mounted read-only, if it may not have been unmounted or frozen. Nobody may have the file
// system mounted: that is EBUSY. At return it is durable, and clean; a crash before leaves the journal as it was, or
// partly replayed, and replaying it again gives the same.
//
// An ext4 that needs none is told by its superblock, in less than 1 ms. An xfs is mounted in any case, which takes some
// 10 ms in a guest with one CPU: only the end of its log says, and has to be searched for; and the log of one that was
// frozen is never empty (xfs_fs_freeze), though all that was synced is in its place.
func replay(ctx context.Context, device string) error {
	_, err := replayed(ctx, device)
	return err
}

// replayed is replay, and returns how many inodes the file system uses then, as inodes does.
func replayed(ctx context.Context, device string) (used int64, err error) {
	fs, state, err := readState(device)
	if err != nil {
		return 0, err
	}
	if !state.dirty {
		if err := checkUnmounted(device); err != nil {
			return 0, err
		}
		if mended, err := fs.mend(device); err != nil || !mended {
			return state.inodes, err
		}
	}
	m, err := mountDetached(fs, device, fs.ownMount(false))
	if err != nil {
		return 0, fmt.Errorf("replay the journal of %s: %w", device, err)
	}
	failpoint.Hit("thin.replay-mounted")
	if err := m.close(ctx); err != nil {
		return 0, err
	}
	return inodes(device)
}

// grow makes the file system on a device as large as the device, if it is not already. Nobody may have it mounted: that
// is EBUSY. At return it is durable.
//
// A crash in the middle does no harm. What is added lies beyond the end of the file system until a transaction of the
// journal moves the end, so after the crash it is as large as before, or larger by some of its groups of blocks, and
// whole in each case; the next grow does the rest.
//
// The allocation groups of an xfs stay as large as they were, and journals as long: an xfs that grows a hundredfold has
// hundreds of groups, and each takes up to 64 KiB of blocks at once.
func grow(ctx context.Context, device string) error {
	fs, state, err := readState(device)
	if err != nil {
		return err
	}
	size, err := deviceSize(device)
	if err != nil {
		return err
	}
	blocks := size / state.blockSize
	if blocks < state.blocks {
		return fmt.Errorf("grow %s: the file system has %d blocks, the device room for %d", device, state.blocks, blocks)
	}
	if blocks-state.blocks < max(state.tailBlocks, 1) {
		return nil
	}
	m, err := mountDetached(fs, device, fs.ownMount(true))
	if err != nil {
		return fmt.Errorf("grow %s: %w", device, err)
	}
	failpoint.Hit("thin.grow-mounted")
	err = fs.resize(m.root, state, blocks)
	failpoint.Hit("thin.grow-resized")
	return errors.Join(err, m.close(ctx))
}
