package overlayaufs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/errdefs"
)

// guardPath is where, in the work directory, overlayfs leaves the sign that a volatile mount was there, which makes it
// refuse the next mount (Documentation/filesystems/overlayfs.rst, "Volatile mount"). It takes no account of whether the
// machine went down in between.
const guardPath = "work/incompat/volatile"

// claimBoot allows a writable content that is mounted volatile to be mounted again in the same boot of the machine, when
// the kernel still has all that was written to it; and refuses it in a later one, when some may be lost.
//
// The boot is recorded in a symbolic link, which is made at once with its target and needs no fsync: it is made before
// the first mount, so what a power cut keeps of that mount's changes came later in the journal (ext4, xfs) or not
// earlier in a transaction (btrfs). A machine that was shut down in order is not told apart from one that crashed:
// overlayfs does not sync a volatile layer when it is unmounted either.
//
// The link decides, not the kernel's guard. So it does no harm to remove the guard of a mount that is still there.
func (b *Backend) claimBoot(ctx context.Context, id uint64, volatile bool) error {
	link := b.path(id, bootName)
	was, err := os.Readlink(link)
	missing := errors.Is(err, os.ErrNotExist)
	if err != nil && !missing {
		return err
	}
	if missing && !volatile {
		return nil
	}
	now, err := b.bootID()
	if err != nil {
		return err
	}
	if missing {
		if err := os.Symlink(now, link); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		return nil
	}
	if was != now {
		return b.tornError(id)
	}
	return b.onRoot("remove volatile guard", func(fd int) error {
		return removeTree(ctx, fd, fmt.Sprintf("%d/%s/%s", id, workName, guardPath))
	})
}

// checkBoot refuses a content that claimBoot would refuse to mount: it must not become a layer either.
func (b *Backend) checkBoot(id uint64) error {
	was, err := os.Readlink(b.path(id, bootName))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	now, err := b.bootID()
	if err == nil && was != now {
		err = b.tornError(id)
	}
	return err
}

func (b *Backend) tornError(id uint64) error {
	return fmt.Errorf("%s was mounted volatile before the machine was last started, and may have lost any of what was "+
		"written to it: remove the snapshot and make it anew: %w", b.path(id), errdefs.ErrFailedPrecondition)
}

// kernelBootID returns a name of this run of the kernel.
func kernelBootID() (string, error) {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(data)), nil
}
