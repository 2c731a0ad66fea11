package overlayaufs

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// marks say how a directory of a layer is read. The zero value takes everything for what it looks like.
type marks struct {
	driver string
	attrs  string // what the names of overlayfs's attributes begin with
}

// The attributes of overlayfs that change what a reader of a layer sees (Documentation/filesystems/overlayfs.rst).
const (
	redirectMark  = "overlay.redirect" // of a directory that was renamed: what it is united with has another path
	metacopyMark  = "overlay.metacopy" // of a file of which only the attributes were copied up
	whiteoutMark  = "overlay.whiteout" // of an empty file that is a whiteout, in a directory of whiteoutsValue (Linux 6.7)
	whiteoutsMark = "x"                // of opaqueMark: such files are in the directory
)

func marksOf(s shown) marks {
	m := marks{driver: s.driver, attrs: trustedPrefix}
	if slices.Contains(s.options, "userxattr") {
		m.attrs = userPrefix
	}
	return m
}

// A listed is a name in a directory of a layer.
type listed struct {
	name string
	gone bool // it is deleted below, in the form of aufs
}

// A dirMark is what a directory of a layer is beside what it looks like.
type dirMark struct {
	opaque     bool // nothing from below is in it
	redirected bool // what it is united with has another path
	whiteouts  bool // empty files in it may be whiteouts
}

// read returns what an open directory is and, in the place of its names, what is in it, sorted.
func (m marks) read(fd int, names []listed, inTop bool) (mark dirMark, entries []listed, err error) {
	if m.driver == driverOverlay {
		mark, err = m.overlayDir(fd)
	}
	entries = names[:0]
	for _, e := range names {
		if m.driver == driverAufs && strings.HasPrefix(e.name, whPrefix) {
			what, err := m.aufsEntry(fd, e.name, inTop)
			switch {
			case err != nil:
				return mark, nil, err
			case what == opaque:
				mark.opaque = true
				continue
			case what == private:
				continue
			}
			e = listed{strings.TrimPrefix(e.name, whPrefix), true}
		}
		entries = append(entries, e)
	}
	slices.SortFunc(entries, func(a, b listed) int { return strings.Compare(a.name, b.name) })
	for i := 1; i < len(entries); i++ {
		if entries[i].name == entries[i-1].name {
			return mark, nil, fmt.Errorf("%q is there and is deleted, which aufs answers with EIO: remove one of both", entries[i].name)
		}
	}
	return mark, entries, err
}

func (marks) aufsEntry(fd int, name string, inTop bool) (mark, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return unmarked, err
	}
	what, err := aufsMark(name, st.Mode&unix.S_IFMT)
	if err == nil {
		err = checkMark(what, name, uint64(st.Size), inTop)
	}
	if err != nil {
		return unmarked, fmt.Errorf("%q: %w", name, err)
	}
	return what, nil
}

func (m marks) overlayDir(fd int) (mark dirMark, err error) {
	value, err := attrOr(getAttr(fd, m.attrs+opaqueMark))
	if err != nil {
		return mark, err
	}
	mark.opaque, mark.whiteouts = value == opaqueValue, value == whiteoutsMark
	if mark.opaque {
		return mark, nil // the kernel does not look further either (ovl_lookup_single in fs/overlayfs/namei.c)
	}
	_, err = unix.Fgetxattr(fd, m.attrs+redirectMark, nil)
	mark.redirected, err = isThereAttr(err)
	return mark, err
}

// isDeletion reports whether an entry, which is no directory, says that what is below is deleted.
func (m marks) isDeletion(fd int, name string, st *unix.Stat_t, in dirMark) (bool, error) {
	typ := st.Mode & unix.S_IFMT
	switch {
	case m.driver != driverOverlay:
		return false, nil
	case isWhiteout(typ, st.Rdev):
		return true, nil
	case in.whiteouts && typ == unix.S_IFREG && st.Size == 0:
		return m.has(fd, name, whiteoutMark)
	}
	return false, nil
}

// isBelow reports whether the content of an entry, which is no directory, is in a layer below. It asks whatever the options are, as a layer
// may have been written with others: the file is then a hole as long as the content.
func (m marks) isBelow(fd int, name string, st *unix.Stat_t) (bool, error) {
	if m.driver != driverOverlay || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size == 0 {
		return false, nil
	}
	return m.has(fd, name, metacopyMark)
}

func (m marks) has(fd int, name, attr string) (bool, error) {
	_, err := unix.Lgetxattr(entryPath(fd, name), m.attrs+attr, nil)
	return isThereAttr(err)
}

// isThereAttr says what the error of reading an attribute tells of it.
func isThereAttr(err error) (bool, error) {
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EOPNOTSUPP) {
		return false, nil
	}
	return err == nil, err
}

// attrOr returns no value for an attribute that is not there. One that is longer than those of overlayfs has none of its values.
func attrOr(value string, err error) (string, error) {
	if errors.Is(err, unix.ERANGE) {
		return "", nil
	}
	_, err = isThereAttr(err)
	return value, err
}
