package overlayaufs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// dropOpaque makes the layer chain[0] show the same without opaque directories: what one of them hides gets whiteouts. Each
// content is a directory of its number in root.
//
// aufs, in all versions up to 6.11, takes of all opaque directories of a path the lowest for the one that counts
// (au_lkup_dentry in fs/aufs/dentry.c: a directory that is looked up for the first time has no type yet, so an opaque one
// does not end the search). What a directory hid that was replaced in two layers would be there again. If no layer below
// has any, the one in the writable branch is alone.
//
// A mark goes last, so a crash leaves a layer that shows the same, and the next call goes on.
func dropOpaque(ctx context.Context, root int, chain []Content) error {
	f := &opaqueFinder{}
	f.walk = newWalk(root, f)
	if err := f.walk.run(ctx, dirName(chain[0].ID)); err != nil {
		return err
	}
	for _, dir := range f.found {
		c := &closer{root: root, layer: chain[0], mark: slices.Concat(dir, []string{opaqueName})}
		if err := c.closeAll(ctx, dir, chain[1:]); err != nil {
			return fmt.Errorf("opaque directory %s: %w", strings.Join(dir, "/"), err)
		}
	}
	return nil
}

// An opaqueFinder notes the opaque directories that a walk comes by, by their names below the top.
type opaqueFinder struct {
	walk  *walk
	found [][]string
}

func (*opaqueFinder) dir(*unix.Stat_t)        {}
func (*opaqueFinder) mountPoint() error       { return nil }
func (*opaqueFinder) leave(int, string) error { return nil }

func (f *opaqueFinder) entry(fd int, name string, typ uint8) (descend bool, err error) {
	if name == opaqueName {
		f.found = append(f.found, f.walk.path()[1:])
	}
	typ, err = typeOf(fd, dirent{name, typ})
	own := len(f.walk.stack) == 1 && slices.Contains(aufsOwn, name)
	return typ == unix.DT_DIR && !own, err
}

// A closer puts whiteouts into the directories of a layer.
type closer struct {
	root  int
	layer Content
	mark  []string // of the opaque directory, to which whiteouts are links
}

// closeAll closes a directory and those in it that layers below have too, and then removes the mark.
func (c *closer) closeAll(ctx context.Context, dir []string, below []Content) error {
	below, err := c.reached(ctx, dir, below)
	if err != nil {
		return err
	}
	type job struct {
		dir   []string
		below []Content
	}
	for jobs := []job{{dir, below}}; len(jobs) > 0; {
		last := jobs[len(jobs)-1]
		jobs = jobs[:len(jobs)-1]
		both, err := c.close(ctx, last.dir, last.below)
		if err != nil {
			return err
		}
		for name, below := range both {
			jobs = append(jobs, job{slices.Concat(last.dir, []string{name}), below})
		}
	}
	return c.in(ctx, c.layer, dir, func(fd int) error {
		return keepingTimes(fd, func() error { return unlessMissing(unix.Unlinkat(fd, opaqueName, 0)) })
	})
}

// reached returns the layers in which aufs looks for a directory, were it not opaque: those above a whiteout of it or of
// one that it is in.
func (c *closer) reached(ctx context.Context, dir []string, below []Content) ([]Content, error) {
	for i, layer := range below {
		for depth := range dir {
			var st unix.Stat_t
			err := c.in(ctx, layer, dir[:depth], func(fd int) error {
				return unix.Fstatat(fd, whPrefix+dir[depth], &st, unix.AT_SYMLINK_NOFOLLOW)
			})
			if err == nil {
				return below[:i], nil
			}
			if !isGone(err) && !errors.Is(err, unix.ENAMETOOLONG) {
				return nil, err
			}
		}
	}
	return below, nil
}

// close puts a whiteout into one directory for each name in it that a layer below has and the layer has not. It returns the
// names of the directories that both have, with the layers.
func (c *closer) close(ctx context.Context, dir []string, below []Content) (both map[string][]Content, err error) {
	own, err := c.list(ctx, c.layer, dir)
	if err != nil {
		return nil, err
	}
	both = map[string][]Content{}
	missing := map[string]struct{}{}
	hidden := map[string]bool{} // by whiteouts of layers passed
	for _, layer := range below {
		entries, err := c.list(ctx, layer, dir)
		if err != nil {
			return nil, err
		}
		for name, typ := range entries {
			ownType, has := own[name]
			switch {
			case strings.HasPrefix(name, whPrefix), hidden[name]:
			case !has:
				missing[name] = struct{}{}
			case ownType == unix.DT_DIR && typ == unix.DT_DIR:
				both[name] = append(both[name], layer)
			}
		}
		for name := range entries {
			if gone, ok := strings.CutPrefix(name, whPrefix); ok {
				hidden[gone] = true
			}
		}
	}
	return both, c.whiteOut(ctx, dir, slices.Sorted(maps.Keys(missing)))
}

func (c *closer) whiteOut(ctx context.Context, dir, names []string) error {
	if len(names) == 0 {
		return nil
	}
	return c.in(ctx, c.layer, c.mark[:len(c.mark)-1], func(marked int) error {
		return c.in(ctx, c.layer, dir, func(fd int) error {
			return keepingTimes(fd, func() error { return makeWhiteouts(marked, fd, names) })
		})
	})
}

// makeWhiteouts puts whiteouts of these names into the directory fd, as links to the mark of another.
func makeWhiteouts(marked, fd int, names []string) error {
	for _, name := range names {
		err := unix.Linkat(marked, opaqueName, fd, whPrefix+name, 0)
		if errors.Is(err, unix.EMLINK) {
			err = unix.Mknodat(fd, whPrefix+name, unix.S_IFREG|0o444, 0)
		}
		switch {
		case errors.Is(err, unix.EEXIST): // from a call that was cut short
		case errors.Is(err, unix.ENAMETOOLONG): // aufs does not show a file of such a name
		case err != nil:
			return &os.PathError{Op: "make whiteout", Path: whPrefix + name, Err: err}
		}
	}
	return nil
}

// keepingTimes calls fn, which changes the entries of the directory fd, and gives that its times back. A crash in between
// leaves it the later ones.
func keepingTimes(fd int, fn func() error) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	return errors.Join(fn(), unix.UtimesNanoAt(fd, ".", []unix.Timespec{st.Atim, st.Mtim}, 0))
}

// list returns the entries of a directory of a layer with their types, none if there is no such directory.
func (c *closer) list(ctx context.Context, layer Content, dir []string) (map[string]uint8, error) {
	entries := map[string]uint8{}
	err := c.in(ctx, layer, dir, func(fd int) error {
		buf := make([]byte, 64<<10)
		for {
			n, err := retry(func() (int, error) { return unix.ReadDirent(fd, buf) })
			if err != nil || n <= 0 {
				return err
			}
			for e, rest := nextDirent(buf[:n]); e.name != ""; e, rest = nextDirent(rest) {
				typ, err := typeOf(fd, e)
				if err != nil {
					return err
				}
				entries[e.name] = typ
			}
		}
	})
	return entries, unlessMissing(err)
}

// in calls fn with a descriptor of a directory of a layer. It follows no symbolic link, as a layer may hold any.
func (c *closer) in(ctx context.Context, layer Content, dir []string, fn func(fd int) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	fd, err := openDir(c.root, dirName(layer.ID))
	for _, name := range dir {
		if err != nil {
			break
		}
		var next int
		next, err = openDir(fd, name)
		unix.Close(fd) //nolint:errcheck // nothing was written through it
		fd = next
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // what was made in it is synced with the whole file system
	return fn(fd)
}

// typeOf returns the type of an entry, also where the file system does not tell it with the names. One that is gone has none.
func typeOf(fd int, e dirent) (uint8, error) {
	if e.typ != unix.DT_UNKNOWN {
		return e.typ, nil
	}
	var st unix.Stat_t
	err := unlessMissing(unix.Fstatat(fd, e.name, &st, unix.AT_SYMLINK_NOFOLLOW))
	return uint8(st.Mode & unix.S_IFMT >> 12), err // as DT_ constants are made, see IFTODT in dirent.h
}

// unlessMissing returns nil for the error of something that is not there.
func unlessMissing(err error) error {
	if isGone(err) {
		return nil
	}
	return err
}
