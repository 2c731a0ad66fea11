package guest

import (
	"fmt"
	"time"
)

// Options are the properties of a guest. The zero value is a good guest.
type Options struct {
	// Memory of the guest in bytes, 4 GiB if zero. The host gives only what
	// the guest touches, and gets it back at its end.
	Memory int64

	// Disk is the size in bytes of the sparse disk below /tmp, /var/tmp and
	// /var/lib, 20 GiB if zero.
	Disk int64

	// ExtraDisks are the sizes in bytes of more sparse disks, empty ones. See
	// [ExtraDisk] for their names.
	ExtraDisks []int64

	// Timeout bounds the program; the guest ends at most 40 s later. If zero it
	// is one hour. [Main] takes the tests' own timeout, and some seconds for
	// them to say what ran, before either.
	Timeout time.Duration

	// Udev starts systemd-udevd.
	Udev bool

	// SELinux starts it in the guest's kernel, without a policy.
	SELinux bool

	standstill time.Duration // stoodStill if zero

	// Writable are directories of the host that the guest may write to.
	Writable []string
}

// SELinuxArgument is in the command line of a kernel that [Options.SELinux] has started.
const SELinuxArgument = "lsm=selinux"

// ExtraDisk returns the name, in any guest, of the disk that is number n of
// [Options.ExtraDisks]: /dev/guest/disk0 for the first. It is a symbolic link.
func ExtraDisk(n int) string { return fmt.Sprintf("/dev/guest/disk%d", n) }

const (
	defaultMemory  = 4 << 30
	defaultDisk    = 20 << 30
	defaultTimeout = time.Hour
)

func (o Options) withDefaults() Options {
	if o.Memory == 0 {
		o.Memory = defaultMemory
	}
	if o.Disk == 0 {
		o.Disk = defaultDisk
	}
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	if o.standstill == 0 {
		o.standstill = stoodStill
	}
	return o
}
