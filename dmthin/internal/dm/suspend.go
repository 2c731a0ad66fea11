package dm

import (
	"errors"

	"golang.org/x/sys/unix"
)

// SuspendFlags change what Suspend waits for.
type SuspendFlags uint32

const (
	// NoFlush holds I/O back that is under way instead of waiting for it, in targets that can, and freezes nothing: the
	// kernel then takes SkipLockFS for granted.
	NoFlush SuspendFlags = unix.DM_NOFLUSH_FLAG
	// SkipLockFS does not freeze the file system that is mounted from the device.
	SkipLockFS SuspendFlags = unix.DM_SKIP_LOCKFS_FLAG
)

// Suspend freezes the file system that is mounted from a device, waits until the I/O that is under way has ended, and
// holds back what comes from then on. It is no error if the device is suspended already. When it returns nil, Resume must
// follow whatever happens.
//
// It takes no context since it cannot be given up: the freezing of a file system does not heed signals, and the wait for
// I/O is begun again after each signal that a Go program can handle, since Go's handlers are SA_RESTART (Linux commit
// 1e1fd567d32f). It takes as long as the disk does. Nor would it do to return and let it finish by itself: nobody would
// know whether the device is suspended.
func (c *Control) Suspend(name string, flags SuspendFlags) error {
	req := request{
		cmd: unix.DM_DEV_SUSPEND, op: "suspend", name: name,
		flags: unix.DM_SUSPEND_FLAG | uint32(flags&(NoFlush|SkipLockFS)),
	}
	for {
		// Before that commit any signal, such as those with which the Go runtime preempts goroutines, ends the wait with
		// EINTR. The kernel has undone what it had begun by then.
		if _, err := c.onDevice(req); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// Resume makes the loaded table the active one, if there is one, and lets I/O go on. It is no error if the device is not
// suspended. To replace an active table see [Control.Replace].
//
// The kernel checks some of a table only here: a pool's data device that shrank is EINVAL, and leaves the device
// suspended.
func (c *Control) Resume(name string) error {
	_, err := c.onDevice(request{cmd: unix.DM_DEV_SUSPEND, op: "resume", name: name, eventNr: udevCookie})
	return err
}

// Replace gives an active device another table. The kernel suspends it, without a flush, exchanges the tables and resumes it in
// one request (do_resume in drivers/md/dm-ioctl.c), so that a process that is killed meanwhile leaves no suspended device: its
// own threads could be waiting for I/O on that, and would keep all its files and locks.
//
// After an error the device may be suspended.
func (c *Control) Replace(name string, readOnly bool, targets ...Target) error {
	var err error
	for range replaceAttempts {
		if err := c.Load(name, readOnly, targets...); err != nil {
			return err
		}
		_, err = c.onDevice(request{
			cmd: unix.DM_DEV_SUSPEND, op: "replace the table of", name: name, flags: unix.DM_NOFLUSH_FLAG, eventNr: udevCookie,
		})
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EINVAL) {
			return err
		}
		// A signal may have ended the suspend, which is undone then. Kernels of before 2024 do not look at that: they find the
		// device not suspended, answer EINVAL, and lose the loaded table
		// (https://lore.kernel.org/dm-devel/CACGdZYKbdyALADEMDV+Vg+eog+UjjgGigEpmJTSKw_64RM8rbA@mail.gmail.com/).
		if info, failed := c.Info(name); failed != nil || info.Suspended {
			return errors.Join(err, failed)
		}
	}
	return err
}

// replaceAttempts is more than signals ever come one upon the other.
const replaceAttempts = 100
