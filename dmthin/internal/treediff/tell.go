package treediff

import (
	"context"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// A Told is a function that is told of an entry: of its path, what it is, nil if it is gone, and the descriptor of the directory in which its
// last name is.
type Told func(path string, st *unix.Stat_t, dir int) error

// Tell tells of differences in the tree under the descriptor upper, in their order, and before each of the directories above
// it that were not told of.
func Tell(ctx context.Context, upper int, differences []Difference, fn Told) error {
	t := &teller{fn: fn, open: []level{{fd: upper}}}
	defer t.leave(1)
	for _, d := range differences {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := t.tell(d); err != nil {
			return err
		}
	}
	return nil
}

// A teller has the directory open that it told of last, and those above it.
type teller struct {
	fn   Told
	open []level // the root first
	last string  // the path that was told of last
}

type level struct {
	path string
	fd   int
}

func (t *teller) tell(d Difference) error {
	names := strings.Split(d.Path, "/")
	for depth, name := range names[:len(names)-1] {
		path := join(t.open[depth].path, name)
		if depth+1 < len(t.open) && t.open[depth+1].path == path {
			continue
		}
		t.leave(depth + 1)
		if err := t.enter(path, name); err != nil {
			return err
		}
	}
	t.leave(len(names))
	dir, name := t.open[len(names)-1].fd, names[len(names)-1]
	t.last = d.Path
	if d.Gone {
		return t.fn(d.Path, nil, dir)
	}
	return t.entry(d.Path, name, dir)
}

// enter opens a directory in the one that is open, and tells of it if it was not told of just now.
func (t *teller) enter(path, name string) error {
	above := t.open[len(t.open)-1].fd
	if t.last != path {
		if err := t.entry(path, name, above); err != nil {
			return err
		}
	}
	fd, err := openAt(above, name, unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	t.open = append(t.open, level{path, fd})
	return nil
}

func (t *teller) entry(path, name string, dir int) error {
	st := new(unix.Stat_t)
	if err := unix.Fstatat(dir, name, st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return t.fn(path, st, dir)
}

// leave closes the directories that are deeper than the first ones.
func (t *teller) leave(depth int) {
	for len(t.open) > depth {
		unix.Close(t.open[len(t.open)-1].fd) //nolint:errcheck // it was only read
		t.open = t.open[:len(t.open)-1]
	}
}

// All tells of all that is in the tree under a descriptor.
func All(ctx context.Context, upper int, fn Told) error {
	return tellAll(ctx, "", &directory{fd: upper}, &teller{fn: fn}, make([]byte, direntBuffer))
}

func tellAll(ctx context.Context, path string, d *directory, t *teller, buffer []byte) error {
	entries, err := d.list(buffer, all)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		path := join(path, e.name)
		if err := t.entry(path, e.name, d.fd); err != nil {
			return err
		}
		if !e.dir {
			continue
		}
		sub := d.sub(e.name)
		err := tellAll(ctx, path, sub, t, buffer)
		sub.close()
		if err != nil {
			return err
		}
	}
	return nil
}
