package treediff

import (
	"context"

	"golang.org/x/sys/unix"
)

// A walk is one run of Compare.
type walk struct {
	ctx     context.Context //nolint:containedctx // lives as long as one call
	changed Inodes
	unfound int64 // names of those that no directory was read of yet
	found   []Difference
	groups  map[uint64]*group // of inodes with several links in the upper tree
	content comparer
	buffer  []byte
}

// A group is the names of one inode.
type group struct {
	links     uint32
	told      uint32
	unchanged []string // names that are as they were, as far as they were seen
}

func (w *walk) roots(lower, upper int) error {
	l, u := &directory{fd: lower}, &directory{fd: upper}
	was, err := statAt(lower, "")
	if err != nil {
		return err
	}
	now, err := statAt(upper, "")
	if err != nil {
		return err
	}
	same, err := w.unchanged(l, u, "", was, now)
	if err != nil {
		return err
	}
	return w.pair("", l, u, same)
}

// pair compares two directories that have the same path, same ones if they have the same names for the same inodes.
func (w *walk) pair(path string, lower, upper *directory, same bool) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	keep := all
	if same && w.changed != nil {
		keep = w.mayDiffer
	}
	now, err := w.list(upper, keep)
	if err != nil {
		return err
	}
	was := now
	if !same {
		if was, err = lower.list(w.buffer, all); err != nil {
			return err
		}
	}
	for len(was) > 0 || len(now) > 0 {
		switch {
		case len(now) == 0 || len(was) > 0 && was[0].name < now[0].name:
			w.found = append(w.found, Difference{Path: join(path, was[0].name), Gone: true})
			was = was[1:]
		case len(was) == 0 || now[0].name < was[0].name:
			err = w.added(path, upper, now[0])
			now = now[1:]
		default:
			err = w.both(path, lower, upper, was[0], now[0])
			was, now = was[1:], now[1:]
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// list lists a directory of the upper tree, which is read once in a walk.
func (w *walk) list(d *directory, keep func(ino uint64, dir bool) bool) ([]entry, error) {
	entries, err := d.list(w.buffer, keep)
	for _, e := range entries {
		if _, ok := w.changed[e.ino]; ok {
			w.unfound--
		}
	}
	return entries, err
}

// mayDiffer reports whether an entry of a directory that has not changed is to be looked at.
func (w *walk) mayDiffer(ino uint64, dir bool) bool {
	_, changed := w.changed[ino]
	return dir || changed
}

// both compares entries of the same name.
func (w *walk) both(path string, lower, upper *directory, was, now entry) error {
	path = join(path, now.name)
	if w.known(was, now) {
		if !now.dir || w.unfound <= 0 {
			return nil
		}
		return w.descend(path, lower, upper, now.name, true)
	}
	old, err := lower.stat(now.name)
	if err != nil {
		return err
	}
	st, err := upper.stat(now.name)
	if err != nil {
		return err
	}
	if old.Mode&unix.S_IFMT != st.Mode&unix.S_IFMT {
		return w.addedStat(path, upper, now, st)
	}
	same, err := w.unchanged(lower, upper, now.name, old, st)
	if err != nil {
		return err
	}
	differs := false
	if !same {
		if differs, err = w.differs(lower, upper, now.name, old, st); err != nil {
			return err
		}
	}
	w.note(path, st, differs)
	if now.dir {
		return w.descend(path, lower, upper, now.name, same)
	}
	return nil
}

// known reports whether two entries are known to be of one inode that has not changed.
func (w *walk) known(was, now entry) bool {
	if w.changed == nil || was.ino != now.ino {
		return false
	}
	_, changed := w.changed[now.ino]
	return !changed
}

// descend compares two directories of one name.
func (w *walk) descend(path string, lower, upper *directory, name string, same bool) error {
	l, u := lower.sub(name), upper.sub(name)
	defer l.close()
	defer u.close()
	return w.pair(path, l, u, same)
}

// added tells of an entry that the lower tree has not, with all that is in it.
func (w *walk) added(path string, d *directory, e entry) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	st, err := d.stat(e.name)
	if err != nil {
		return err
	}
	return w.addedStat(join(path, e.name), d, e, st)
}

func (w *walk) addedStat(path string, d *directory, e entry, st *unix.Statx_t) error {
	w.note(path, st, true)
	if !e.dir {
		return nil
	}
	sub := d.sub(e.name)
	defer sub.close()
	entries, err := w.list(sub, all)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := w.added(path, sub, e); err != nil {
			return err
		}
	}
	return nil
}

// note notes an entry of the upper tree that was looked at.
func (w *walk) note(path string, st *unix.Statx_t, told bool) {
	if told {
		w.found = append(w.found, Difference{Path: path})
	}
	if st.Nlink < 2 || st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return
	}
	g := w.groups[st.Ino]
	if g == nil {
		g = &group{links: st.Nlink}
		w.groups[st.Ino] = g
	}
	if told {
		g.told++
	} else {
		g.unchanged = append(g.unchanged, path)
	}
}

// completeGroups tells of the other names of files of which one is told of: alone it would become a file of its own.
func (w *walk) completeGroups(upper int) error {
	wanted := map[uint64]*group{}
	for ino, g := range w.groups {
		if g.told == 0 {
			continue
		}
		if w.changed != nil && g.told+uint32(len(g.unchanged)) < g.links {
			// In a directory that is as it was, of an inode that is too: one that was above it has another name now.
			g.unchanged = nil
			wanted[ino] = g
			continue
		}
		w.tell(g)
	}
	if len(wanted) == 0 {
		return nil
	}
	if err := w.search("", &directory{fd: upper}, wanted); err != nil {
		return err
	}
	for _, g := range wanted {
		w.tell(g)
	}
	return nil
}

func (w *walk) tell(g *group) {
	for _, path := range g.unchanged {
		w.found = append(w.found, Difference{Path: path})
	}
}

// search notes all names of the inodes that are wanted, also those that are told of already.
func (w *walk) search(path string, d *directory, wanted map[uint64]*group) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	entries, err := d.list(w.buffer, func(ino uint64, dir bool) bool { return dir || wanted[ino] != nil })
	if err != nil {
		return err
	}
	for _, e := range entries {
		if g := wanted[e.ino]; g != nil {
			g.unchanged = append(g.unchanged, join(path, e.name))
		}
		if !e.dir {
			continue
		}
		sub := d.sub(e.name)
		err := w.search(join(path, e.name), sub, wanted)
		sub.close()
		if err != nil {
			return err
		}
	}
	return nil
}
