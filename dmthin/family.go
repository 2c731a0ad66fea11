package dmthin

import (
	"cmp"
	"fmt"
	"slices"
)

// An owner says who has a block, or a node of a tree: a place in a family, and whether it is the only one there. 0 is nobody.
type owner uint32

func only(place int) owner       { return owner(place << 1) }
func (o owner) place() int       { return int(o >> 1) }
func (o owner) alone() bool      { return o&1 == 0 }
func withOthers(place int) owner { return owner(place<<1 | 1) }

// A family is volumes and which of them is made upon which. Place 0 is above all that are made upon none.
type family struct {
	places map[uint32]int // of volumes
	above  []int          // of each place the one that it is upon; 0 of 0
	depth  []int          // how many are above it

	// The last question: blocks that lie together mostly have the same owners.
	asked [2]owner
	last  owner
}

// newFamily is that of these volumes and of all that parents knows.
func newFamily(volumes []blocksOf, parents Genealogy) *family {
	f := &family{places: map[uint32]int{}, above: []int{0}, depth: []int{0}}
	place := func(id uint32) {
		if _, ok := f.places[id]; !ok {
			f.places[id] = len(f.above)
			f.above, f.depth = append(f.above, 0), append(f.depth, -1)
		}
	}
	for _, v := range volumes {
		place(v.ID)
	}
	for id, parent := range parents {
		place(id)
		place(parent)
	}
	for id, parent := range parents {
		f.above[f.places[id]] = f.places[parent]
	}
	for at := range f.above {
		f.setDepth(at)
	}
	return f
}

// setDepth finds out how deep a place lies, and those above it. Who is said to be above himself is upon none.
func (f *family) setDepth(at int) {
	const underWay = -2
	var path []int
	for ; f.depth[at] == -1; at = f.above[at] {
		f.depth[at] = underWay
		path = append(path, at)
	}
	if f.depth[at] == underWay {
		f.above[at], f.depth[at] = 0, 1
	}
	for _, below := range slices.Backward(path) {
		if f.depth[below] == underWay {
			f.depth[below] = f.depth[f.above[below]] + 1
		}
	}
}

// join returns who has what both have: the nearest place that both are at, or below.
func (f *family) join(a, b owner) owner {
	if a == 0 || a == b && !a.alone() {
		return b
	}
	if f.asked != [2]owner{a, b} {
		f.asked, f.last = [2]owner{a, b}, withOthers(f.nearest(a.place(), b.place()))
	}
	return f.last
}

func (f *family) nearest(a, b int) int {
	for f.depth[a] > f.depth[b] {
		a = f.above[a]
	}
	for f.depth[b] > f.depth[a] {
		b = f.above[b]
	}
	for a != b {
		a, b = f.above[a], f.above[b]
	}
	return a
}

// owners are those of blocks, in pages.
type owners map[uint64]*[ownersPage]owner

const ownersPage = 1024

// of returns where the owner of a block is kept.
func (o owners) of(block uint64) *owner {
	page := o[block/ownersPage]
	if page == nil {
		page = new([ownersPage]owner)
		o[block/ownersPage] = page
	}
	return &page[block%ownersPage]
}

// attribute sets how many blocks are a volume's own, and how many are its and of those upon it. Nodes are taken from the top,
// so that all who lead to one are known when it is looked at.
func (s *sharing) attribute(volumes []blocksOf, roots []uint64, parents Genealogy) error {
	f := newFamily(volumes, parents)
	s.family = f
	for i, v := range volumes {
		t := s.subtrees[roots[i]]
		t.owner = f.join(t.owner, only(f.places[v.ID]))
	}
	nodes := make([]uint64, 0, len(s.subtrees))
	for block := range s.subtrees {
		nodes = append(nodes, block)
	}
	slices.SortFunc(nodes, func(a, b uint64) int { // those of one height in the order in which they lie on the disk
		return cmp.Or(cmp.Compare(s.subtrees[b].height, s.subtrees[a].height), cmp.Compare(a, b))
	})
	for _, block := range nodes {
		if err := s.passOn(block); err != nil {
			return err
		}
	}
	s.sumUp(volumes)
	return nil
}

// passOn gives what a node leads to its owner, beside those that it has.
func (s *sharing) passOn(block uint64) error {
	t := s.subtrees[block]
	node, err := s.node(block, 1)
	if err != nil {
		return err
	}
	changes := fmt.Errorf("block %d of the pool's metadata changes", block) // it is not what it was when it was read before
	if node.leaf != (t.height == 1) {
		return changes
	}
	for i := range node.entries {
		if node.leaf {
			o := s.owners.of(node.number(i) >> timeBits)
			*o = s.family.join(*o, t.owner)
			continue
		}
		child := s.subtrees[node.number(i)]
		if child == nil || child.height >= t.height {
			return changes
		}
		child.owner = s.family.join(child.owner, t.owner)
	}
	if node.leaf {
		s.progress(node.entries)
	}
	return nil
}

// sumUp counts the blocks of each owner, and with those of a place the ones of all below it.
func (s *sharing) sumUp(volumes []blocksOf) {
	f := s.family
	own, all := make([]uint64, len(f.above)), make([]uint64, len(f.above))
	for _, page := range s.owners {
		for _, o := range page {
			if o == 0 {
				continue
			}
			all[o.place()]++
			if o.alone() {
				own[o.place()]++
			}
		}
	}
	places := make([]int, len(f.above))
	for i := range places {
		places[i] = i
	}
	slices.SortFunc(places, func(a, b int) int { return cmp.Compare(f.depth[b], f.depth[a]) })
	for _, at := range places {
		if at != 0 {
			all[f.above[at]] += all[at]
		}
	}
	for i, v := range volumes {
		volumes[i].Exclusive, volumes[i].Freed = own[f.places[v.ID]], all[f.places[v.ID]]
	}
}
