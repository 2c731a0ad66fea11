package differ

import (
	"archive/tar"

	"golang.org/x/sys/unix"
)

type inode struct{ dev, ino uint64 }

// A link is the first name of a file with several, by which the others refer to it, and its capabilities.
type link struct {
	name, capability string
	stat             unix.Stat_t
	told             int // of its names
}

// links are those of which not all names have been told of.
type links map[inode]*link

// find returns the first name of what c tells of, or nil if this is it. A number that is used again meanwhile is another file's: that is
// errChanged, as its first name is not the one that was told of.
func (l links) find(c Change) (*link, error) {
	if !severalNames(c.Stat) {
		return nil, nil
	}
	i := inode{c.Stat.Dev, c.Stat.Ino}
	first, ok := l[i]
	if !ok {
		return nil, nil
	}
	if c.Stat.Mode != first.stat.Mode || c.Stat.Nlink != first.stat.Nlink || !sameContent(c.Stat, &first.stat) {
		return nil, errChanged
	}
	if first.told++; first.told == int(c.Stat.Nlink) {
		delete(l, i)
	}
	return first, nil
}

// add remembers a first name, and what its header says.
func (l links) add(c Change, h *tar.Header) {
	if severalNames(c.Stat) {
		l[inode{c.Stat.Dev, c.Stat.Ino}] = &link{name: c.Path, capability: h.PAXRecords[capabilityTag], stat: *c.Stat, told: 1}
	}
}

func severalNames(st *unix.Stat_t) bool { return st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR }
