package treediff

import (
	"context"
	"os"

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
	open []level    // the root first
	at   *directory // the last of these, if it was told of for a difference
	last string     // the path that was told of last
}

type level struct {
	name, path string
	fd         int
}

func (t *teller) tell(d Difference) error {
	if err := t.goTo(d.dir); err != nil {
		return err
	}
	dir := t.open[len(t.open)-1]
	path := join(dir.path, d.name)
	t.last = path
	if d.Gone {
		return t.fn(path, nil, dir.fd)
	}
	return t.entry(path, d.name, dir.fd)
}

// goTo opens a directory and those above it, as far as they are not open, and closes the others.
func (t *teller) goTo(d *directory) error {
	if d == t.at {
		return nil
	}
	names := d.names()
	same := 0
	for same < len(names) && same+1 < len(t.open) && t.open[same+1].name == names[same] {
		same++
	}
	t.leave(same + 1)
	for _, name := range names[same:] {
		if err := t.enter(name); err != nil {
			return err
		}
	}
	t.at = d
	return nil
}

// enter opens a directory in the one that is open, and tells of it if it was not told of just now.
func (t *teller) enter(name string) error {
	above := t.open[len(t.open)-1]
	path := join(above.path, name)
	if t.last != path {
		if err := t.entry(path, name, above.fd); err != nil {
			return err
		}
	}
	fd, err := openAt(above.fd, name, unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	t.open = append(t.open, level{name, path, fd})
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

// All tells of all that is in the tree under a descriptor. A path that no layer can have is errdefs.ErrInvalidArgument.
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
		if err := d.checkPath(e.name); err != nil {
			return err
		}
		path := join(path, e.name)
		if err := t.entry(path, e.name, d.fd); err != nil {
			return err
		}
		if !e.dir {
			continue
		}
		sub, err := d.sub(e.name)
		if err != nil {
			return err
		}
		err = tellAll(ctx, path, sub, t, buffer)
		sub.close()
		if err != nil {
			return err
		}
	}
	return nil
}
