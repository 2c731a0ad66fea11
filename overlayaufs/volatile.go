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

// claimBoot allows a writable content that is mounted volatile to be mounted again in the same boot of the machine, and
// refuses it in a later one.
//
// What the kernel leaves is the sign of a mount, not of a crash: it is there after each volatile mount, also of a container that
// stopped in order. In the same boot the kernel has what was written, or has written it back, unless the disk failed. That the next
// syncfs tells: if it succeeds, nothing is lost, so the sign is removed and the container can start again; if it fails, the layer is refused
// for good. In a later boot it may stand for a crash: it stays, whatever the settings
// are by then, and goes with the layer alone. A machine that was shut down in order is not told apart from one that
// crashed: overlayfs does not sync a volatile layer when it is unmounted either. Nor is told what failed while no daemon had the root
// open, if another syncfs was told of it, or if the file system was mounted again: there a container may start that has lost
// writes for which fsync would have failed.
//
// The boot is recorded in a symbolic link, which is made at once with its target and needs no fsync: it is made before
// the first mount, so what a power cut keeps of that mount's changes came later in the journal (ext4, xfs) or not
// earlier in a transaction (btrfs). The same holds for the kernel's sign, and for the word that takes its place in the link before it is removed.
// Without sign and word nobody has mounted what Mounts was called for, as a start does with all active snapshots.
func (b *Backend) claimBoot(ctx context.Context, id uint64, volatile bool) error {
	m, err := b.readMark(id)
	if err != nil || m.boot == "" && !volatile {
		return err
	}
	_, again := b.claimed.LoadOrStore(id, nil)
	now, err := b.bootID()
	if err != nil {
		return err
	}
	link := b.path(id, bootName)
	switch {
	case m.boot != "" && m.boot != now:
		if m.torn() {
			return b.tornError(id)
		}
		if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return b.claimBoot(ctx, id, volatile)
	case m.boot == "":
		if err := os.Symlink(now, link); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		return nil
	case !m.torn():
		return nil
	}
	if !m.mounted {
		if err := b.markMounted(id, now); err != nil {
			return err
		}
	}
	// The first call is the start's, in which many come at once: the root was opened a moment ago, and is told of nothing older.
	if again {
		if err := b.checkWritten(ctx, id); err != nil {
			return err
		}
	}
	if !m.sign {
		return nil
	}
	return b.onRoot("remove volatile guard", func(fd int) error {
		return removeTree(ctx, fd, fmt.Sprintf("%d/%s/%s", id, workName, guardPath))
	})
}

// checkWritten refuses a content that was mounted volatile if the file system cannot write, or could not since the root was opened. The
// kernel says so once, so the link remembers it; one that cannot be written either leaves the sign, and the error until the next start.
func (b *Backend) checkWritten(ctx context.Context, id uint64) error {
	err := b.written.flush(ctx)
	if err == nil || ctx.Err() != nil {
		return err
	}
	return errors.Join(b.tornError(id), err, b.markMounted(id, failedBoot))
}

// failedBoot stands in the link for a boot that is never again.
const failedBoot = "failed"

// A bootMark is what tells whether a content was mounted volatile.
type bootMark struct {
	boot    string // in which it may have been; "" for none
	mounted bool   // it was, and the kernel's sign of it was removed
	sign    bool   // the kernel's, of a mount since
}

// torn reports whether what was written in another boot may be lost.
func (m bootMark) torn() bool { return m.mounted || m.sign }

// mountedWord follows the boot in the link once it is known that the content was mounted.
const mountedWord = "mounted"

func (b *Backend) readMark(id uint64) (m bootMark, err error) {
	target, err := os.Readlink(b.path(id, bootName))
	if errors.Is(err, os.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return m, err
	}
	boot, word, _ := strings.Cut(target, " ")
	m.boot, m.mounted = boot, word == mountedWord
	_, err = os.Lstat(b.path(id, workName, guardPath))
	m.sign = err == nil
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return m, err
}

// markMounted replaces the link. A crash leaves the one or the other, and perhaps a name that goes with the content.
func (b *Backend) markMounted(id uint64, boot string) error {
	link, temp := b.path(id, bootName), b.path(id, bootNewName)
	if err := os.Symlink(boot+" "+mountedWord, temp); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := os.Rename(temp, link); err != nil && !errors.Is(err, os.ErrNotExist) { // another call has done it
		return err
	}
	return nil
}

// checkBoot refuses a content that claimBoot would refuse to mount: it must not become a layer either.
func (b *Backend) checkBoot(id uint64) error {
	m, err := b.readMark(id)
	if err != nil || !m.torn() {
		return err
	}
	now, err := b.bootID()
	if err == nil && m.boot != now {
		err = b.tornError(id)
	}
	return err
}

func (b *Backend) tornError(id uint64) error {
	return fmt.Errorf("%s was mounted volatile before the machine was last started or while its disk failed, and may have "+
		"lost any of what was written to it: remove the snapshot and make it anew: %w", b.path(id), errdefs.ErrFailedPrecondition)
}

// kernelBootID returns a name of this run of the kernel.
func kernelBootID() (string, error) {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(data)), nil
}
