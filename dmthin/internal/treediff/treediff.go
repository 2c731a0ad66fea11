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
	"strings"

	"golang.org/x/sys/unix"
)

// A Difference is one entry of the upper tree that is not as in the lower, or one of the lower that the upper has not.
type Difference struct {
	Path string // from the root
	Gone bool
}

// Inodes are those that may have changed, by their numbers. What is not among them is the same in both file systems: a file
// with all that is in it, a directory with all names in it. The value is how many names it has in the upper tree.
type Inodes map[uint64]uint32

// Compare returns what the tree under the descriptor upper changes in the one under lower, in the order of a layer. If changed is
// not nil it says what may have: then no other inode is looked at, and directories only as long as names are to be found.
//
// Of a file with several links that is told of, all names are told of, so that they are links of each other again where the
// difference is applied.
func Compare(ctx context.Context, lower, upper int, changed Inodes) ([]Difference, error) {
	w := &walk{ctx: ctx, changed: changed, groups: map[uint64]*group{}, buffer: make([]byte, direntBuffer)}
	for ino, names := range changed {
		if ino != rootOf(upper) {
			w.unfound += int64(names)
		}
	}
	if err := w.roots(lower, upper); err != nil {
		return nil, err
	}
	if err := w.completeGroups(upper); err != nil {
		return nil, err
	}
	slices.SortFunc(w.found, func(a, b Difference) int { return compareNames(a.Path, b.Path) })
	return slices.Compact(w.found), nil
}

// compareNames gives the order of a layer: by name in each directory, what is in a directory right behind it.
func compareNames(a, b string) int {
	for {
		aName, aRest, aMore := strings.Cut(a, "/")
		bName, bRest, bMore := strings.Cut(b, "/")
		if c := cmp.Compare(aName, bName); c != 0 {
			return c
		}
		if !aMore || !bMore {
			return cmp.Compare(len(a), len(b))
		}
		a, b = aRest, bRest
	}
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

func rootOf(fd int) uint64 {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return 0
	}
	return st.Ino
}
