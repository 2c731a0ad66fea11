package dmthin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// A liveMount is a detached mount of a file system that a client may have mounted, in whatever mount namespace, or may mount
// at any moment: the two share the superblock, and the options with it.
type liveMount struct {
	fs     filesystem
	state  fsState
	device string
	root   *os.File // its root directory
}

// openWait bounds the wait for those who have a device open that is not mounted: a program that looks what is on it, or a
// child that has not come to its exec.
const openWait = time.Second

// mountLive mounts the file system on the device of a volume so that it can grow. One that cannot is
// errdefs.ErrFailedPrecondition.
func (p *Pool) mountLive(ctx context.Context, id uint32, device string) (*liveMount, error) {
	fs, state, err := readState(device)
	if err != nil {
		return nil, err
	}
	if state.errors {
		return nil, fmt.Errorf("its %s has noted errors and is to be repaired first: %w", fs, errdefs.ErrFailedPrecondition)
	}
	if err := pollBusy(ctx, openWait, func() error { return p.checkShared(id, device) }); err != nil {
		if errors.Is(err, unix.EBUSY) {
			err = fmt.Errorf("somebody has it open without having mounted it here, such as a virtual machine: %w: %w", err, errdefs.ErrFailedPrecondition)
		}
		return nil, err
	}
	root, err := openRoot(fs, device, fs.ownMount(true))
	if errors.Is(err, unix.EBUSY) {
		err = fmt.Errorf("it is mounted read-only, or used by another device: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, err
	}
	m := &liveMount{fs: fs, state: state, device: device, root: root}
	if meanwhile, _ := fs.growing(); meanwhile != "" {
		if err := m.reconfigure(meanwhile); err != nil {
			return nil, errors.Join(err, m.close(ctx))
		}
	}
	return m, nil
}

// checkShared returns EBUSY for a device that somebody has open who does not claim it. Who has mounted it, does: to mount it
// once more is no second file system then. Others may have one of their own.
func (p *Pool) checkShared(id uint32, device string) error {
	err := checkUnmounted(device)
	if errors.Is(err, unix.EBUSY) {
		return nil
	}
	if err != nil {
		return err
	}
	info, err := p.volume(id)
	if err == nil && info.OpenCount > 0 {
		return fmt.Errorf("%s: %w", device, unix.EBUSY)
	}
	return err
}

// grow makes the file system as large as its device. At return that is durable.
func (m *liveMount) grow() error {
	size, err := deviceSize(m.device)
	if err != nil {
		return err
	}
	if m.state.fills(size) {
		return nil
	}
	return m.fs.resize(m.root, m.state, size/m.state.blockSize)
}

// sync writes what the file system has not written yet. It may be written meanwhile.
func (m *liveMount) sync() error {
	err := unix.Syncfs(int(m.root.Fd()))
	runtime.KeepAlive(m.root)
	if err != nil {
		return &os.PathError{Op: "sync", Path: m.device, Err: err}
	}
	return nil
}

// close ends this mount, not that of a client. It flushes the device, with which the pool commits what it has mapped.
func (m *liveMount) close(ctx context.Context) error {
	if _, after := m.fs.growing(); after != "" {
		if err := m.reconfigure(after); err != nil { // space is lost with it, and nothing else
			log.G(ctx).WithError(err).Warn("a file system that has grown has other mount options now")
		}
	}
	f, err := os.Open(m.device)
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	return errors.Join(err, m.root.Close())
}

// reconfigure sets an option of the superblock.
func (m *liveMount) reconfigure(option string) error {
	fd, err := unix.Fspick(int(m.root.Fd()), "", unix.FSPICK_CLOEXEC|unix.FSPICK_EMPTY_PATH)
	if err == nil {
		err = unix.FsconfigSetFlag(fd, option)
		if err == nil {
			err = unix.FsconfigReconfigure(fd)
		}
		err = errors.Join(err, unix.Close(fd))
	}
	runtime.KeepAlive(m.root)
	if err != nil {
		return &os.PathError{Op: "set option " + option + " of", Path: m.device, Err: err}
	}
	return nil
}
