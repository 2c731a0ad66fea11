package overlayaufs

import (
	"context"
	"errors"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A stack is the layers below one, as a walk through that goes down in all of them at once. It reads layers in either form, and
// those of which some marks are in each.
//
// It tells where the two union file systems do not unite the same directories. overlayfs ends the union at the first layer in
// which the directory is opaque, or that has something else of the name. aufs ends it at neither when it looks a directory up for
// the first time (au_lkup_dentry in fs/aufs/dentry.c: isdir is of a dentry that has no inode yet; tried on 6.1, and the same from 5.0
// to 6.11): it passes over something else, and takes the lowest of several opaque directories for the one that ends the union.
// So a directory that was replaced in two layers shows what was in it before the second time. What is translated to its form
// has a whiteout for each name instead, as what aufs has written and is committed (dropOpaque).
type stack struct {
	root   int // descriptor of the root of the place
	layers []Content
	attrs  string // prefix of overlayfs's attributes

	levels [][]reached // of each directory that the walk is in
}

// A reached is a layer that has the directory too, where no whiteout comes before it.
type reached struct {
	Content
	united bool // by overlayfs
}

// A kind is what a layer has of a name.
type kind int

const (
	nothing kind = iota
	directory
	opaqueDirectory
	deletion
	otherFile
)

// alone reports whether overlayfs unites the directory that the walk is in with none below.
func (s *stack) alone() bool {
	return !slices.ContainsFunc(s.levels[len(s.levels)-1], func(r reached) bool { return r.united })
}

// enter goes into a directory of the layer above.
func (s *stack) enter(path func() string, isOpaque bool) error {
	n := len(s.levels)
	if n == 0 {
		s.levels = append(s.levels, make([]reached, len(s.layers)))
		for i, c := range s.layers {
			s.levels[0][i] = reached{c, true} // of the roots of layers none is opaque: neither file system looks
		}
		return nil
	}
	var with []reached
	open := !isOpaque // to overlayfs
	for _, r := range s.levels[n-1] {
		k, err := s.look(r.Content, path())
		if err != nil {
			return err
		}
		if k == deletion {
			break
		}
		if k == directory || k == opaqueDirectory {
			with = append(with, reached{r.Content, r.united && open})
		}
		if r.united && (k == opaqueDirectory || k == otherFile) {
			open = false
		}
	}
	s.levels = append(s.levels, with)
	return nil
}

// hidden returns the layers whose directories overlayfs hides and aufs may show. A layer with which the directory is
// united hides those further below for both.
func (s *stack) hidden() (layers []Content) {
	if !s.alone() {
		return nil
	}
	for _, r := range s.levels[len(s.levels)-1] {
		layers = append(layers, r.Content)
	}
	return layers
}

// names returns what these layers have in a directory that is not in the open directory fd.
func (s *stack) names(ctx context.Context, layers []Content, where string, fd int) ([]string, error) {
	missing := map[string]bool{}
	for _, c := range layers {
		dir, err := openDeep(s.root, path.Join(strconv.FormatUint(c.ID, 10), fsName, where))
		if err != nil {
			return nil, err
		}
		l := lister{missing: missing, above: fd}
		if err := errors.Join(walkTree(ctx, dir, ".", &l), unix.Close(dir)); err != nil {
			return nil, err
		}
	}
	return slices.Sorted(maps.Keys(missing)), nil
}

// A lister notes the names in one directory that are not in another.
type lister struct {
	missing map[string]bool
	above   int
}

func (*lister) dir(*unix.Stat_t) {}

func (l *lister) entry(_ int, name string, _ uint8) (descend bool, err error) {
	if strings.HasPrefix(name, whPrefix) {
		return false, nil
	}
	there, err := isThere(l.above, name)
	if !there && err == nil {
		there, err = isHidden(l.above, name)
	}
	if !there && err == nil {
		l.missing[name] = true
	}
	return false, err
}

func (*lister) mountPoint() error { return unix.EBUSY }

func (*lister) leave(int, string) error { return nil }

func (s *stack) leave() { s.levels = s.levels[:len(s.levels)-1] }

// look returns what a layer has of a path below its root, all of whose directories it has.
func (s *stack) look(c Content, where string) (k kind, err error) {
	fd, err := openDeep(s.root, path.Join(strconv.FormatUint(c.ID, 10), fsName, path.Dir(where)))
	if errors.Is(err, unix.ENOENT) {
		return nothing, nil
	}
	if err != nil {
		return nothing, &os.PathError{Op: "look into layer " + strconv.FormatUint(c.ID, 10), Path: where, Err: err}
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written through it
	name := path.Base(where)
	if hidden, err := isHidden(fd, name); hidden || err != nil {
		return deletion, err
	}
	var st unix.Stat_t
	switch err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); {
	case errors.Is(err, unix.ENOENT):
		return nothing, nil
	case err != nil:
		return nothing, err
	case isWhiteout(st.Mode&unix.S_IFMT, st.Rdev):
		return deletion, nil
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return otherFile, nil
	}
	dir, err := openDir(fd, name)
	if err != nil {
		return nothing, err
	}
	opaque, err := isOpaque(dir, s.attrs)
	if err = errors.Join(err, unix.Close(dir)); opaque {
		return opaqueDirectory, err
	}
	return directory, err
}

// isOpaque reports whether an open directory is opaque, in one form or the other.
func isOpaque(fd int, attrs string) (bool, error) {
	value, err := getAttr(fd, attrs+opaqueMark)
	switch {
	case err == nil:
		return value == opaqueValue, nil
	case !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP):
		return false, err
	}
	return isThere(fd, opaqueName)
}

// openDeep opens a directory in the directory fd by a path of any length. That the directories on the way are none of them
// a symbolic link is known.
func openDeep(fd int, where string) (int, error) {
	const most = 2048 // bytes; the kernel takes 4095
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	at := fd
	for {
		part, rest := where, ""
		if len(where) > most {
			i := strings.LastIndexByte(where[:most], '/')
			part, rest = where[:i], where[i+1:]
		}
		next, err := retry(func() (int, error) { return unix.Openat(at, part, flags, 0) })
		if at != fd {
			err = errors.Join(err, unix.Close(at))
		}
		if err != nil || rest == "" {
			return next, err
		}
		at, where = next, rest
	}
}
