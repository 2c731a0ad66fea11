// Package treediff finds in what two file systems differ of which one was once a copy of the other, block for block.
//
// An inode that was not changed since has the same number, generation, times of birth and of change in both. So a file is read
// only if its inode was changed and says nothing of a difference: a file that was renamed and renamed back, or opened to be written.
//
// Both file systems must be mounted, and not change meanwhile: what is on them is not trusted, but believed to be one state.
// Files are reached by descriptors, never by a path from the root, and no link is followed.
package treediff

import (
	"cmp"
	"context"
	"slices"
)

// A Difference is one entry of the upper tree that is not as in the lower, or one of the lower that the upper has not.
//
// It knows its directory and no path: thousands of names in one directory far down would have thousands of long ones.
type Difference struct {
	dir  *directory // of the upper tree
	name string
	Gone bool
}

// Path returns the path from the root.
func (d Difference) Path() string { return join(d.dir.path(), d.name) }

// Inodes are those that may have changed, by their numbers. What is not among them is the same in both file systems: a file
// with all that is in it, a directory with all names in it. The value is how many names it has in the upper tree.
type Inodes map[uint64]uint32

// Compare returns what the tree under the descriptor upper changes in the one under lower, in the order of a layer. If changed is
// not nil it says what may have: then no other inode is looked at, and directories only as long as names are to be found.
//
// Of a file with several links that is told of, all names are told of, so that they are links of each other again where the
// difference is applied. A path that no layer can have is errdefs.ErrInvalidArgument.
func Compare(ctx context.Context, lower, upper int, changed Inodes) ([]Difference, error) {
	w := &walk{ctx: ctx, changed: changed, groups: map[uint64]*group{}, buffer: make([]byte, direntBuffer)}
	if err := w.roots(lower, upper); err != nil {
		return nil, err
	}
	if err := w.completeGroups(upper); err != nil {
		return nil, err
	}
	slices.SortFunc(w.found, compareOrder)
	return slices.CompactFunc(w.found, func(a, b Difference) bool { return compareOrder(a, b) == 0 && a.Gone == b.Gone }), nil
}

// compareOrder gives the order of a layer: by name in each directory, what is in a directory right behind it.
func compareOrder(a, b Difference) int {
	deeper := a.dir.depth - b.dir.depth
	aDir, aName := a.dir.above(a.name, max(0, deeper))
	bDir, bName := b.dir.above(b.name, max(0, -deeper))
	return cmp.Or(compareDirectories(aDir, bDir), cmp.Compare(aName, bName), deeper)
}

// compareDirectories compares directories of one depth. One directory may have been come by twice.
func compareDirectories(a, b *directory) int {
	if a == b || a.depth == 0 {
		return 0
	}
	return cmp.Or(compareDirectories(a.parent, b.parent), cmp.Compare(a.name, b.name))
}
