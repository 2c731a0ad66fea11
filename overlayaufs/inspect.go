package overlayaufs

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// An inspection looks for what keeps a layer from being translated, and counts what would be. It changes nothing, and is
// for a layer of which nothing has been translated yet.
type inspection struct {
	*walk
	manner
	ctx   context.Context //nolint:containedctx // as in a translation
	below *stack
	tell  tell

	fixed   []bool // of each directory that the walk is in: chattr keeps it from being changed
	list    []byte
	failed  error // of dir, which cannot return one
	counts  Counts
	refused []error
}

// maxRefused is how many reasons are told of a layer: a package that cannot be translated may have thousands.
const maxRefused = 10

// inspect returns why the layer in the directory name of the directory top cannot be translated.
func inspect(ctx context.Context, top int, name string, how manner, below *stack, tell tell) (counts Counts, refused []error, err error) {
	if there, err := isThere(top, name); !there {
		return Counts{}, nil, err
	}
	i := &inspection{ctx: ctx, manner: how, below: below, tell: tell, list: make([]byte, maxAttrList)}
	i.walk = newWalk(top, i)
	err = i.run(ctx, name)
	return i.counts, i.refused, err
}

// refuse notes why an entry of the directory that the walk is in cannot be translated, or, if name is "", the directory itself.
func (i *inspection) refuse(name string, why error) {
	if len(i.refused) < maxRefused {
		i.refused = append(i.refused, fmt.Errorf("%q: %w", path.Join("/", i.path(), name), why))
	}
}

func (i *inspection) dir(*unix.Stat_t) {
	i.counts.Entries++
	i.tell(i.counts)
	i.fixed = append(i.fixed, false)
	i.failed = errors.Join(i.failed, i.own(i.last()), i.look(i.last()))
}

// own looks at the attributes of the open directory that the walk is in.
func (i *inspection) own(fd int) error {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_TYPE, &st); err != nil {
		return err
	}
	i.fixed[len(i.fixed)-1] = isFixed(&st)
	list, err := listOwnAttrs(fd, i.list)
	if err == nil && i.attributes("", list, true, func(name string) (string, error) { return getAttr(fd, name) }) {
		i.touch()
	}
	return err
}

// look goes into the layers below, too.
func (i *inspection) look(fd int) error {
	opaque, err := isOpaque(fd, i.attrs)
	if err == nil {
		err = i.below.enter(i.path, opaque)
	}
	if err != nil || i.from == formAufs {
		return err
	}
	hidden := i.below.hidden()
	if len(hidden) == 0 {
		return nil
	}
	if !opaque {
		i.counts.Opaque++
	}
	i.touch()
	names, err := i.below.names(i.ctx, hidden, i.path(), fd)
	i.counts.Added += len(names)
	for _, name := range names {
		if len(name) > aufsNameMax {
			i.refuse("", errTooLongForAufs)
		}
	}
	return err
}

func (i *inspection) path() string { return strings.Join(i.walk.path()[1:], "/") }

// touch notes that the directory that the walk is in would be changed. It is refused once.
func (i *inspection) touch() {
	if fixed := &i.fixed[len(i.fixed)-1]; *fixed {
		*fixed = false
		i.refuse("", errFixed)
	}
}

// isFixed reports whether chattr +i or +a keeps a file from being changed.
func isFixed(st *unix.Statx_t) bool {
	return st.Attributes&(unix.STATX_ATTR_IMMUTABLE|unix.STATX_ATTR_APPEND) != 0
}

// attributes judges those of an entry, and reports whether some of them would be changed.
func (i *inspection) attributes(name string, list []byte, dir bool, get func(string) (string, error)) (touches bool) {
	for attr := range attrNames(list) {
		switch {
		case attr == i.attrs+timeAttr:
			i.refuse(name, fmt.Errorf("the attribute %s is none that a layer has", attr))
		case i.from == formAufs && strings.HasPrefix(attr, i.attrs+overlayAttrs):
			i.refuse(name, fmt.Errorf("the attribute %s would be a mark of overlayfs", attr))
		}
	}
	if i.from == formAufs {
		return false
	}
	p, err := planAttrs(list, i.attrs, dir, get)
	if err != nil {
		i.refuse(name, err)
	}
	i.counts.Attributes += len(p.drop)
	if p.opaque {
		i.counts.Opaque++
	}
	return p.opaque || len(p.drop) > 0
}

func (i *inspection) entry(fd int, name string, _ uint8) (descend bool, err error) {
	if i.failed != nil {
		return false, i.failed
	}
	var st unix.Statx_t
	err = unix.Statx(fd, name, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_TYPE|unix.STATX_SIZE, &st)
	if err != nil {
		return false, err
	}
	if m := i.mark(name, &st); m != unmarked {
		i.count(m)
		if m == whiteout && i.from == formAufs {
			return false, i.lookBeside(fd, name)
		}
		return false, nil
	}
	if uint32(st.Mode)&unix.S_IFMT == unix.S_IFDIR {
		return true, nil
	}
	i.counts.Entries++
	list, err := listAttrs(fd, name, i.list)
	if err == nil && i.attributes(name, list, false, nil) && isFixed(&st) {
		i.refuse(name, errFixed)
	}
	return false, err
}

var errFixed = errors.New("it is to be changed, and chattr +i or +a keeps it from that; take it off with chattr -i -a")

// mark judges what an entry means, and refuses what would get a meaning.
func (i *inspection) mark(name string, st *unix.Statx_t) (m mark) {
	var err error
	typ, rdev := uint32(st.Mode)&unix.S_IFMT, unix.Mkdev(st.Rdev_major, st.Rdev_minor)
	if i.from == formOverlay {
		m, err = overlayMark(name, typ, rdev)
	} else if m, err = aufsMark(name, typ); m == unmarked && err == nil && isWhiteout(typ, rdev) {
		err = errors.New("a device 0:0 would be a whiteout of overlayfs")
	}
	if err == nil && i.from == formAufs {
		err = checkMark(m, name, st.Size, i.path() == "")
	}
	if err == nil && m != unmarked && isFixed(st) {
		err = errFixed
	}
	if err != nil {
		i.refuse(name, err)
	}
	if m != unmarked {
		i.touch()
	}
	return m
}

// lookBeside refuses a whiteout of aufs's beside what it is of.
func (i *inspection) lookBeside(fd int, name string) error {
	both, err := isThere(fd, strings.TrimPrefix(name, whPrefix))
	if both {
		i.refuse(name, errors.New("what it deletes is beside it, which is an error to aufs; remove one of the two"))
	}
	return err
}

func (i *inspection) count(m mark) {
	i.counts.Entries++
	switch m {
	case whiteout:
		if i.from == formOverlay || !i.below.alone() {
			i.counts.Whiteouts++
			break
		}
		i.counts.Void++
	case opaque:
		i.counts.Opaque++
	case private:
		i.counts.Own++
	case unmarked:
	}
}

func (i *inspection) mountPoint() error { return unix.EBUSY }

func (i *inspection) leave(int, string) error {
	i.fixed = i.fixed[:len(i.fixed)-1]
	if i.failed == nil {
		i.below.leave()
	}
	return i.failed
}
