package overlayaufs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// A changeWalk tells what is in a layer, by name and each directory before what is in it. It keeps its place as a walk does,
// so that it follows no symbolic link and takes a tree of any depth; what vanishes meanwhile is an error here.
type changeWalk struct {
	*walk
	ctx    context.Context //nolint:containedctx // that of one call of Changes
	fn     func(Change) error
	marks  marks
	union  *union
	below  *below
	owners *owners

	path   []byte // of the directory that the walk is in, each name with a slash behind it
	levels []changeLevel
}

// A changeLevel is a directory that the walk is in.
type changeLevel struct {
	dirMark
	entries []listed // that are still to be told of
	start   int      // of its name in path
	void    bool     // there is nothing below
	inTop   bool
}

// errMoved is what a change while a layer is read looks like.
var errMoved = fmt.Errorf("the layer changed while it was read: %w", fs.ErrNotExist)

// errNoContent is for what a container itself can not read.
var errNoContent = fmt.Errorf("the layer has its attributes alone, and nothing is below: %w", errdefs.ErrFailedPrecondition)

// run tells of what is in the directory name in the top one.
func (c *changeWalk) run(name string) error {
	defer func() { c.cut(0) }()
	fd, err := c.open(name)
	if err != nil {
		return err
	}
	l := changeLevel{start: len(c.path), void: c.union.isAlone(), inTop: true}
	if err := c.enter(name, fd, &l, nil); err != nil {
		return err
	}
	for len(c.levels) > 0 {
		if err := c.step(); err != nil {
			return err
		}
	}
	return nil
}

// step tells of the next entry of the last directory, or leaves that if there is none.
func (c *changeWalk) step() error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	depth := len(c.stack)
	if err := c.reopen(); err != nil {
		return err
	}
	if len(c.stack) < depth {
		return c.at("open again", "", errMoved)
	}
	l := &c.levels[depth-1]
	if len(l.entries) == 0 {
		c.path = c.path[:l.start]
		c.levels = c.levels[:depth-1]
		c.cut(depth - 1)
		return nil
	}
	e := l.entries[0]
	l.entries = l.entries[1:]
	if e.gone {
		return c.gone(e.name)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(c.last(), e.name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return c.at("stat", e.name, moved(err))
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return c.directory(e.name)
	}
	return c.file(e.name, &st)
}

// gone tells of a deletion, if there can be anything to delete.
func (c *changeWalk) gone(name string) error {
	if c.levels[len(c.levels)-1].void {
		return nil
	}
	return c.fn(Change{Path: string(c.path) + name, Dir: c.last()})
}

// file tells of an entry that is no directory.
func (c *changeWalk) file(name string, st *unix.Stat_t) error {
	l := &c.levels[len(c.levels)-1]
	deleted, err := c.marks.isDeletion(c.last(), name, st, l.dirMark)
	if err != nil {
		return c.at("getxattr", name, moved(err))
	}
	if deleted {
		return c.gone(name)
	}
	below, err := c.marks.isBelow(c.last(), name, st)
	if err != nil {
		return c.at("getxattr", name, moved(err))
	}
	if !below {
		return c.tell(name, st, false, c.last())
	}
	if c.union.isAlone() {
		return c.at("read", name, errNoContent)
	}
	return c.union.file(string(c.path), name, st.Dev, func(st *unix.Stat_t, dir int) error {
		return c.tell(name, st, false, dir)
	})
}

func (c *changeWalk) tell(name string, st *unix.Stat_t, opaque bool, dir int) error {
	path := string(c.path) + name
	if len(path) >= unix.PathMax {
		return fmt.Errorf("/%.100s...: a path of %d bytes, of which nobody takes more than %d: %w",
			path, len(path), unix.PathMax-1, errdefs.ErrInvalidArgument)
	}
	if err := c.owners.check(path, st); err != nil {
		return err
	}
	return c.fn(Change{Path: path, Stat: st, Opaque: opaque, Dir: dir})
}

// directory tells of a directory and goes into it.
func (c *changeWalk) directory(name string) error {
	fd, err := c.open(name)
	if err != nil {
		return err
	}
	l := changeLevel{start: len(c.path), void: c.levels[len(c.levels)-1].void}
	return c.enter(name, fd, &l, func(st *unix.Stat_t) error {
		if l.redirected && !c.union.isAlone() {
			l.entries = nil
			return c.redirected(name, st)
		}
		if l.opaque && !l.void {
			if l.void, err = c.below.lacks(string(c.path), name); err != nil {
				return c.at("look below", name, err)
			}
		}
		return c.tell(name, st, l.opaque && !l.void, c.last())
	})
}

// redirected tells of a directory that was renamed, and of all that is in it, which lies below under another path: to who applies it
// the directory is a new one.
func (c *changeWalk) redirected(name string, st *unix.Stat_t) error {
	if err := c.tell(name, st, true, c.last()); err != nil {
		return err
	}
	dev := st.Dev
	return c.union.directory(string(c.path)+name, func(dir int) error {
		whole := &changeWalk{
			walk: newWalk(dir, nil), ctx: c.ctx, union: c.union, owners: c.owners,
			path: []byte(string(c.path) + name + "/"),
			fn: func(ch Change) error {
				ch.Stat.Dev = dev // the file system is the same, and so are its numbers
				return c.fn(ch)
			},
		}
		return whole.run(".")
	})
}

// enter reads the open directory name, calls told and pushes it.
func (c *changeWalk) enter(name string, fd int, l *changeLevel, told func(*unix.Stat_t) error) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, unix.Close(fd))
		}
	}()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return c.at("stat", name, err)
	}
	names, err := c.names(fd)
	if err == nil {
		l.dirMark, l.entries, err = c.marks.read(fd, names, l.inTop)
	}
	if err != nil {
		return c.at("read", name, moved(err))
	}
	f := frame{name: name, fd: fd, dev: st.Dev, ino: st.Ino}
	if told != nil {
		if err := told(&st); err != nil { // who is told may change it
			return err
		}
		c.path = append(append(c.path, name...), '/')
	}
	c.push(f)
	c.levels = append(c.levels, *l)
	return nil
}

func (c *changeWalk) names(fd int) (names []listed, err error) {
	for {
		if err := c.ctx.Err(); err != nil {
			return nil, err
		}
		n, err := retry(func() (int, error) { return unix.ReadDirent(fd, c.buf) })
		if err != nil || n <= 0 {
			return names, err
		}
		for e, rest := nextDirent(c.buf[:n]); e.name != ""; e, rest = nextDirent(rest) {
			names = append(names, listed{name: e.name})
		}
	}
}

// open opens the directory name in the last one.
func (c *changeWalk) open(name string) (int, error) {
	fd, err := openDir(c.last(), name)
	if errors.Is(err, unix.EXDEV) {
		err = fmt.Errorf("something is mounted on it: %w", unix.EBUSY)
	}
	if err != nil {
		return -1, c.at("open", name, moved(err))
	}
	return fd, nil
}

// moved returns errMoved for the error of something that was there when its directory was read.
func moved(err error) error {
	if isGone(err) {
		return errMoved
	}
	return err
}

// at adds the operation and the path to an error.
func (c *changeWalk) at(op, name string, err error) error {
	return &os.PathError{Op: op, Path: string(slices.Concat([]byte{'/'}, c.path, []byte(name))), Err: err}
}
