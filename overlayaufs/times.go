package overlayaufs

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/internal/failpoint"
)

// keepTime notes when the directory fd was last modified, in an attribute of its own, before its entries are changed. A
// note that is there already is of a translation that was cut short, and older than what it changed; it stays. That the note
// is on the disk before a change is the order of the journal, or the one transaction of both.
func keepTime(fd int, attr string) error {
	if _, err := getAttr(fd, attr); !errors.Is(err, unix.ENODATA) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	note := fmt.Sprintf("%d.%09d", st.Mtim.Sec, st.Mtim.Nsec)
	if err := unix.Fsetxattr(fd, attr, []byte(note), unix.XATTR_CREATE); err != nil {
		return err
	}
	failpoint.Hit("migrate.time-noted")
	return nil
}

// giveTimeBack sets the time that keepTime noted, and then removes the note: a cut in between does it again.
func giveTimeBack(fd int, attr string) error {
	note, err := getAttr(fd, attr)
	if err != nil {
		return err
	}
	mtime := unix.Timespec{}
	if _, err := fmt.Sscanf(note, "%d.%d", &mtime.Sec, &mtime.Nsec); err != nil {
		return fmt.Errorf("%s is %q, and no time: %w", attr, note, err)
	}
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, mtime}
	if err := unix.UtimesNanoAt(fd, ".", times, 0); err != nil {
		return err
	}
	failpoint.Hit("migrate.time-set")
	return removeAttr(fd, attr)
}
