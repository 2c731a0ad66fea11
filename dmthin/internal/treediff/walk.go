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
	unchanged []Difference // names that are as they were, as far as they were seen
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
	for ino, names := range w.changed {
		if ino != now.Ino {
			w.unfound += int64(names)
		}
	}
	same, err := w.unchanged(l, u, "", was, now)
	if err != nil {
		return err
	}
	return w.pair(l, u, same)
}

// pair compares two directories that have the same path, same ones if they have the same names for the same inodes.
func (w *walk) pair(lower, upper *directory, same bool) error {
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
			err = w.find(Difference{upper, was[0].name, true})
			was = was[1:]
		case len(was) == 0 || now[0].name < was[0].name:
			err = w.added(upper, now[0])
			now = now[1:]
		default:
			err = w.both(lower, upper, was[0], now[0])
			was, now = was[1:], now[1:]
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// find notes a difference.
func (w *walk) find(d Difference) error {
	if err := d.dir.checkPath(d.name); err != nil {
		return err
	}
	w.found = append(w.found, d)
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
func (w *walk) both(lower, upper *directory, was, now entry) error {
	if w.known(was, now) {
		if !now.dir || w.unfound <= 0 {
			return nil
		}
		return w.descend(lower, upper, now.name, true)
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
		return w.addedStat(upper, now, st)
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
	if err := w.note(upper, now.name, st, differs); err != nil || !now.dir {
		return err
	}
	return w.descend(lower, upper, now.name, same)
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
func (w *walk) descend(lower, upper *directory, name string, same bool) error {
	u, err := upper.sub(name)
	if err != nil {
		return err
	}
	defer u.close()
	l, err := lower.sub(name)
	if err != nil {
		return err
	}
	defer l.close()
	return w.pair(l, u, same)
}

// added tells of an entry that the lower tree has not, with all that is in it.
func (w *walk) added(d *directory, e entry) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	st, err := d.stat(e.name)
	if err != nil {
		return err
	}
	return w.addedStat(d, e, st)
}

func (w *walk) addedStat(d *directory, e entry, st *unix.Statx_t) error {
	if err := w.note(d, e.name, st, true); err != nil || !e.dir {
		return err
	}
	sub, err := d.sub(e.name)
	if err != nil {
		return err
	}
	defer sub.close()
	entries, err := w.list(sub, all)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := w.added(sub, e); err != nil {
			return err
		}
	}
	return nil
}

// note notes an entry of the upper tree that was looked at.
func (w *walk) note(dir *directory, name string, st *unix.Statx_t, told bool) error {
	d := Difference{dir: dir, name: name}
	if told {
		if err := w.find(d); err != nil {
			return err
		}
	}
	if st.Nlink < 2 || st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return nil
	}
	g := w.groups[st.Ino]
	if g == nil {
		g = &group{links: st.Nlink}
		w.groups[st.Ino] = g
	}
	if told {
		g.told++
	} else {
		g.unchanged = append(g.unchanged, d)
	}
	return nil
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
		if err := w.tell(g); err != nil {
			return err
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	if err := w.search(&directory{fd: upper}, wanted); err != nil {
		return err
	}
	for _, g := range wanted {
		if err := w.tell(g); err != nil {
			return err
		}
	}
	return nil
}

func (w *walk) tell(g *group) error {
	for _, d := range g.unchanged {
		if err := w.find(d); err != nil {
			return err
		}
	}
	return nil
}

// search notes all names of the inodes that are wanted, also those that are told of already.
func (w *walk) search(d *directory, wanted map[uint64]*group) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	entries, err := d.list(w.buffer, func(ino uint64, dir bool) bool { return dir || wanted[ino] != nil })
	if err != nil {
		return err
	}
	for _, e := range entries {
		if g := wanted[e.ino]; g != nil {
			g.unchanged = append(g.unchanged, Difference{dir: d, name: e.name})
		}
		if !e.dir {
			continue
		}
		sub, err := d.sub(e.name)
		if err != nil {
			return err
		}
		err = w.search(sub, wanted)
		sub.close()
		if err != nil {
			return err
		}
	}
	return nil
}
