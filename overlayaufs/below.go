package overlayaufs

import (
	"errors"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A stack is the layers below one, as a walk through that goes down in all of them at once. It reads layers in either form, and
// those of which some marks are in each.
//
// It tells where the two union file systems do not unite the same directories. overlayfs ends the union at the first layer that
// has something else of the name; aufs passes over that layer, and shows what directories further below hold
// (fs/aufs/dentry.c, au_do_lookup). Layers that were written through a mount have no such directory: mkdir in the place of a file makes
// an opaque one, in both. But containerd unpacks images into the directory of a layer, past the mount.
type stack struct {
	root   int // descriptor of the root of the place
	layers []Content
	attrs  string // prefix of overlayfs's attributes

	levels [][]Content // of each directory that the walk is in: the layers whose directories overlayfs unites with it
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
func (s *stack) alone() bool { return len(s.levels[len(s.levels)-1]) == 0 }

// enter goes into a directory of the layer above, and reports whether aufs would show there what overlayfs does not.
func (s *stack) enter(path func() string, isOpaque bool) (shows bool, err error) {
	candidates := s.layers
	if n := len(s.levels); n > 0 && isOpaque { // neither overlayfs nor aufs looks whether the root of a layer is
		candidates = nil
	} else if n > 0 {
		candidates = s.levels[n-1]
	}
	var with []Content
	ended := false // by something else than a directory
	for _, c := range candidates {
		k, err := s.look(c, path())
		if err != nil {
			return false, err
		}
		isDir := k == directory || k == opaqueDirectory
		switch {
		case isDir && ended:
			shows = true
		case isDir:
			with = append(with, c)
		case k == otherFile:
			ended = true
		}
		if k == deletion || k == opaqueDirectory || shows || ended && len(with) > 0 {
			break
		}
	}
	s.levels = append(s.levels, with)
	return shows, nil
}

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
	if where == "" {
		return directory, nil
	}
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
