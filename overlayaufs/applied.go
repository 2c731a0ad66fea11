package overlayaufs

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/moby/sys/userns"
	"golang.org/x/sys/unix"
)

// What containerd's applier has written into a layer is not always what is to be there: it knows one form of deletions, and
// writes it into the upper directory of any overlay (core/diff/apply/apply_linux.go).

// opaqueAttr hides in overlayfs what is below a directory, in the form of the applier.
const opaqueAttr = "trusted." + opaqueMark

// A cleaner removes the deletions of a layer.
type cleaner struct{}

func (cleaner) dir(*unix.Stat_t)        {}
func (cleaner) leave(int, string) error { return nil }
func (cleaner) mountPoint() error       { return nil }

func (cleaner) entry(fd int, name string, typ uint8) (descend bool, err error) {
	switch typ {
	case unix.DT_DIR:
		err := unix.Lremovexattr(fmt.Sprintf("/proc/self/fd/%d/%s", fd, name), opaqueAttr)
		return true, ignore(err, unix.ENODATA, unix.ENOTSUP)
	case unix.DT_CHR:
		var st, dir unix.Stat_t
		err := errors.Join(unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW), unix.Fstat(fd, &dir))
		if err != nil || st.Rdev != 0 {
			return false, err
		}
		if err := unix.Unlinkat(fd, name, 0); err != nil {
			return false, err
		}
		// Its directory keeps the time that the layer states.
		self := fmt.Sprintf("/proc/self/fd/%d", fd)
		return false, unix.UtimesNanoAt(unix.AT_FDCWD, self, []unix.Timespec{dir.Atim, dir.Mtim}, 0)
	}
	return false, nil
}

// freezeUserXattr puts opaque directories of a layer into the form of a place with userxattr. In a user namespace the
// applier leaves that to overlayfs.
func (b *Backend) freezeUserXattr(ctx context.Context, id uint64) error {
	if !slices.Contains(b.overlay.options, "userxattr") || userns.RunningInUserNS() {
		return nil
	}
	return b.walkLayer(ctx, id, marker{})
}

// A marker gives the directories that are opaque by a trusted attribute the one that userxattr looks for. A crash leaves some
// with both, and the next call goes on.
type marker struct{}

func (marker) dir(*unix.Stat_t)        {}
func (marker) leave(int, string) error { return nil }
func (marker) mountPoint() error       { return nil }

func (marker) entry(fd int, name string, typ uint8) (descend bool, err error) {
	if typ != unix.DT_DIR {
		return false, nil
	}
	path, value := fmt.Sprintf("/proc/self/fd/%d/%s", fd, name), make([]byte, 1)
	n, err := unix.Lgetxattr(path, opaqueAttr, value)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return true, nil
	}
	if err == nil {
		err = unix.Lsetxattr(path, "user."+opaqueMark, value[:n], 0)
	}
	if err == nil {
		err = unix.Lremovexattr(path, opaqueAttr)
	}
	return true, err
}
