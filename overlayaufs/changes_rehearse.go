package overlayaufs

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// rehearse refuses what cannot be told, before anything of it is: hard links between what is in a directory that was renamed, which is
// told of as a whole, and what is elsewhere and as it was; and what is only to be had from a union of more layers than overlayfs stacks.
//
// Where no directory was renamed and the chain is no longer than that, there is no such thing, and it costs a look at each directory
// of the layer. Otherwise it costs as much as to tell. What changes between the two is seen or not, as in every copy of a tree in use.
func (b *Backend) rehearse(ctx context.Context, s shown) error {
	if s.driver != driverOverlay || len(s.chain) < 2 {
		return nil
	}
	if len(s.chain) <= maxLower {
		if renamed, err := b.hasRenamed(ctx, s); !renamed || err != nil {
			return err
		}
	}
	missing := map[uint64]int64{} // names of a file that are not told, by its number
	err := b.tellChanges(ctx, s, func(c Change) error {
		if c.Stat == nil || c.Stat.Nlink < 2 || c.Stat.Mode&unix.S_IFMT == unix.S_IFDIR {
			return nil
		}
		if _, known := missing[c.Stat.Ino]; !known {
			missing[c.Stat.Ino] = int64(c.Stat.Nlink)
		}
		missing[c.Stat.Ino]--
		return nil
	})
	for ino, n := range missing {
		if n > 0 && err == nil {
			err = fmt.Errorf("a file (inode %d) in a directory that was renamed may have names elsewhere, in the layers below alone: %w",
				ino, errdefs.ErrNotImplemented)
		}
	}
	return err
}

// hasRenamed reports whether there is a directory in the topmost layer that was renamed.
func (b *Backend) hasRenamed(ctx context.Context, s shown) (renamed bool, err error) {
	s.ids = nil // it reads no owners
	top, err := b.openShown(s)
	if err != nil {
		return false, err
	}
	err = walkTree(ctx, top, ".", &renameFinder{marks: marksOf(s)})
	if renamed = errors.Is(err, errRenamed); renamed {
		err = nil
	}
	return renamed, errors.Join(err, unix.Close(top))
}

// A renameFinder is a visitor that ends its walk with errRenamed at a directory that was renamed.
type renameFinder struct {
	marks
	depth int // of the directory that the walk is in
}

var errRenamed = errors.New("the directory was renamed")

func (f *renameFinder) dir(*unix.Stat_t)        { f.depth++ }
func (f *renameFinder) mountPoint() error       { return nil } // who tells of it cannot enter it either
func (f *renameFinder) leave(int, string) error { f.depth--; return nil }

func (f *renameFinder) entry(fd int, name string, typ uint8) (bool, error) {
	if typ != unix.DT_DIR {
		return false, nil
	}
	if f.depth > unix.PathMax/2 { // names of one byte; a walk takes the longer, the deeper it is
		return false, fmt.Errorf("a path of more than %d bytes, which nobody takes: %w", unix.PathMax-1, errdefs.ErrInvalidArgument)
	}
	renamed, err := f.has(fd, name, redirectMark)
	if renamed {
		err = errRenamed
	}
	if isGone(err) { // since it was listed
		err = nil
	}
	return true, err
}
