package overlayaufs

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/internal/failpoint"
)

// A translation turns one layer from one form into the other, in place. The table beside the constants of marks.go is what
// it does.
//
// It may be cut short at any step and done again, by the same translation. Of each mark there is at any moment the old form,
// or both, or the new one: the new one is made first. So what it finds of a mark says what is still to be done:
//
//   - the old form, with or without the new one: the new one is made, if it is missing, and the old one removed;
//   - the new form alone: nothing.
//
// An opaque directory has many marks in the form of aufs, and its attribute goes when all are there and those of the
// directories in it, which come first in the walk.
//
// That the new form is a mark, and not a file that looks like one, was found out before the first change to any layer: a layer that
// has such a file cannot be translated. Names, attributes and the times of a directory are changed in the order in which ext4, xfs and btrfs
// have them on the disk, and no mark has data: a power cut leaves what a kill at some moment before would have left.
type translation struct {
	*walk
	manner
	ctx   context.Context //nolint:containedctx // that of the walk, which a visitor does not get
	below *stack
	marks *markMaker
	tell  tell

	levels []level // one for each frame of the walk
	list   []byte  // for names of attributes
	failed error   // of dir, which cannot return one
	counts Counts
}

// A manner is how layers are translated: from one form to the other, with these attributes on overlayfs's side.
type manner struct {
	from, to form
	attrs    string // what their names begin with: trustedPrefix or userPrefix
}

// A level is what is to be done in a directory that the walk is in.
type level struct {
	dev, ino uint64
	marks    []string // entries in the old form, whiteouts and aufs's own
	opaque   bool     // it is, in the old form
	alone    bool     // overlayfs unites it with none below
	add      []string // names of which whiteouts are missing in the form of aufs
	noted    bool     // its time is noted: a translation was cut short in it
	drop     []string // attributes of the directory
}

// Counts are what was found in layers, or translated. What is done again counts again.
type Counts struct {
	Entries    int // files and directories of any kind
	Whiteouts  int
	Void       int // whiteouts of aufs's form where there is nothing below, which go
	Opaque     int // directories
	Added      int // whiteouts that aufs needs in their place
	Own        int // files and directories of aufs's own, which go
	Attributes int // of overlayfs, which go
}

func (c *Counts) add(o Counts) {
	c.Entries += o.Entries
	c.Whiteouts += o.Whiteouts
	c.Void += o.Void
	c.Opaque += o.Opaque
	c.Added += o.Added
	c.Own += o.Own
	c.Attributes += o.Attributes
}

// translate translates what is in the directory name in the directory top. A layer that has none is no error: a power cut takes
// an active one that nobody synced (see Backend.make), and what is missing has no marks.
func translate(ctx context.Context, top int, name string, how manner, below *stack, tell tell) (Counts, error) {
	if there, err := isThere(top, name); !there {
		return Counts{}, err
	}
	t := &translation{ctx: ctx, manner: how, below: below, marks: newMarkMaker(how.to), tell: tell, list: make([]byte, maxAttrList)}
	t.walk = newWalk(top, t)
	err := t.run(ctx, name)
	return t.counts, errors.Join(err, t.marks.close())
}

// isThere reports whether the directory fd has an entry of the name. One that no file system could have is not there.
func isThere(fd int, name string) (bool, error) {
	var st unix.Stat_t
	err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENAMETOOLONG) {
		return false, nil
	}
	return err == nil, err
}

func (t *translation) dir(st *unix.Stat_t) {
	l := level{dev: st.Dev, ino: st.Ino}
	fd := t.last()
	list, err := listOwnAttrs(fd, t.list)
	for name := range attrNames(list) {
		l.noted = l.noted || name == t.attrs+timeAttr
	}
	if err == nil && t.from == formOverlay {
		var p attrPlan
		p, err = planAttrs(list, t.attrs, true, func(name string) (string, error) { return getAttr(fd, name) })
		l.opaque, l.drop = p.opaque, p.drop
	}
	if err == nil {
		err = t.enter(fd, &l)
	}
	t.failed = errors.Join(t.failed, err)
	t.counts.Entries++
	t.tell(t.counts)
	t.levels = append(t.levels, l)
}

// enter goes into the directory in the layers below, too.
func (t *translation) enter(fd int, l *level) error {
	opaque, err := isOpaque(fd, t.attrs)
	if err == nil {
		err = t.below.enter(t.path, opaque)
	}
	if err != nil {
		return err
	}
	l.alone = t.below.alone()
	if hidden := t.below.hidden(); t.from == formOverlay && len(hidden) > 0 {
		l.opaque = true
		l.add, err = t.below.names(t.ctx, hidden, t.path(), fd)
	}
	return err
}

// path is where in the layer the walk is.
func (t *translation) path() string { return strings.Join(t.walk.path()[1:], "/") }

func (t *translation) entry(fd int, name string, typ uint8) (descend bool, err error) {
	if t.failed != nil {
		return false, t.failed
	}
	st := unix.Stat_t{Mode: uint32(typ) << 12} // IFTODT of dirent.h
	if typ == unix.DT_UNKNOWN || typ == unix.DT_CHR {
		if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return false, err
		}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || strings.HasPrefix(name, whPrefix) { // else when it is entered
		t.counts.Entries++
	}
	if t.from == formAufs {
		return t.fromAufs(name, &st)
	}
	return t.fromOverlay(fd, name, &st)
}

func (t *translation) fromAufs(name string, st *unix.Stat_t) (descend bool, err error) {
	l := &t.levels[len(t.levels)-1]
	m, err := aufsMark(name, st.Mode&unix.S_IFMT)
	switch {
	case err != nil:
		return false, err
	case m == opaque:
		l.opaque = true
		return false, nil
	case m != unmarked:
		l.marks = append(l.marks, name)
		return false, nil
	}
	return st.Mode&unix.S_IFMT == unix.S_IFDIR, nil
}

// isHidden reports whether a directory has a whiteout of the name in aufs's form.
func isHidden(fd int, name string) (bool, error) { return isThere(fd, whPrefix+name) }

func (t *translation) fromOverlay(fd int, name string, st *unix.Stat_t) (descend bool, err error) {
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return true, nil // its attributes are looked at when it is entered
	}
	if strings.HasPrefix(name, whPrefix) { // of a translation that was cut short
		return false, nil
	}
	m, err := overlayMark(name, st.Mode&unix.S_IFMT, st.Rdev)
	if err != nil {
		return false, err
	}
	if m == whiteout {
		l := &t.levels[len(t.levels)-1]
		l.marks = append(l.marks, name)
		return false, nil
	}
	list, err := listAttrs(fd, name, t.list)
	if err != nil || len(list) == 0 {
		return false, err
	}
	p, err := planAttrs(list, t.attrs, false, nil)
	for _, attr := range p.drop {
		err = errors.Join(err, removeEntryAttr(fd, name, attr))
		failpoint.Hit("migrate.attribute-removed")
		t.counts.Attributes++
	}
	return false, err
}

func (t *translation) mountPoint() error { return unix.EBUSY }

func (*translation) op() string { return "translate" }

// leave translates the marks of a directory when all in it has been.
func (t *translation) leave(parent int, name string) (err error) {
	l := t.levels[len(t.levels)-1]
	t.levels = t.levels[:len(t.levels)-1]
	if t.failed != nil {
		return t.failed
	}
	t.below.leave()
	if len(l.marks) == 0 && !l.opaque && !l.noted && len(l.drop) == 0 {
		return nil
	}
	fd, err := openDir(parent, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Dev != l.dev || st.Ino != l.ino {
		return errors.New("the directory is not the one that it was: somebody else changes the layer")
	}
	return t.change(fd, l)
}

// change does what is to be done in the open directory.
func (t *translation) change(fd int, l level) error {
	if err := keepTime(fd, t.attrs+timeAttr); err != nil {
		return fmt.Errorf("note its time: %w", err)
	}
	change := t.toAufs
	if t.from == formAufs {
		change = t.toOverlay
	}
	if err := change(fd, l); err != nil {
		return err
	}
	if err := giveTimeBack(fd, t.attrs+timeAttr); err != nil {
		return fmt.Errorf("give it back its time: %w", err)
	}
	return nil
}

// toOverlay writes the marks of a directory as overlayfs does.
func (t *translation) toOverlay(fd int, l level) error {
	for _, name := range l.marks {
		if strings.HasPrefix(name, aufsOwnPrefix) {
			if err := removeTree(t.ctx, fd, name); err != nil {
				return err
			}
			failpoint.Hit("migrate.own-removed")
			t.counts.Own++
			continue
		}
		if err := t.toWhiteout(fd, name, l.alone); err != nil {
			return fmt.Errorf("translate %q: %w", name, err)
		}
	}
	if !l.opaque {
		return nil
	}
	t.counts.Opaque++
	return t.exchange(
		func() error { return unix.Fsetxattr(fd, t.attrs+opaqueMark, []byte(opaqueValue), 0) },
		func() error { return unlink(fd, opaqueName) })
}

// toWhiteout writes a whiteout of aufs's as overlayfs does, if there is something below to be deleted.
func (t *translation) toWhiteout(fd int, name string, void bool) error {
	removeOld := func() error { return unlink(fd, name) }
	if void {
		t.counts.Void++
		return removeOld()
	}
	t.counts.Whiteouts++
	return t.exchange(func() error { return t.marks.make(fd, strings.TrimPrefix(name, whPrefix)) }, removeOld)
}

// toAufs writes the marks of a directory as aufs does.
func (t *translation) toAufs(fd int, l level) error {
	for _, name := range l.marks {
		if err := t.exchange(
			func() error { return t.marks.make(fd, whPrefix+name) },
			func() error { return unlink(fd, name) }); err != nil {
			return fmt.Errorf("translate %q: %w", name, err)
		}
		t.counts.Whiteouts++
	}
	for _, name := range l.add {
		if err := t.marks.make(fd, whPrefix+name); err != nil {
			return err
		}
		failpoint.Hit("migrate.whiteout-added")
		t.counts.Added++
	}
	drop := l.drop
	if l.opaque {
		drop = append(drop, t.attrs+opaqueMark)
		t.counts.Opaque++
	}
	for _, attr := range drop {
		if err := removeAttr(fd, attr); err != nil {
			return err
		}
		failpoint.Hit("migrate.directory-attribute-removed")
	}
	t.counts.Attributes += len(l.drop)
	return nil
}

// exchange makes the new form of a mark and then removes the old one.
func (t *translation) exchange(makeNew, removeOld func() error) error {
	if err := makeNew(); err != nil {
		return err
	}
	failpoint.Hit("migrate.mark-made")
	if err := removeOld(); err != nil {
		return err
	}
	failpoint.Hit("migrate.mark-removed")
	return nil
}

func unlink(fd int, name string) error {
	if err := unix.Unlinkat(fd, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}
