package dmthin

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
)

// blocksOf are how many blocks of the pool a volume has: all, and those that no other volume has too.
type blocksOf struct {
	ID                uint32
	Mapped, Exclusive uint64
}

// timeBits is how many bits of a mapping say when it was made; the others are the block (pack_block_time in
// drivers/md/dm-thin-metadata.c).
const timeBits = 24

// A sharing counts who has which blocks. Volumes that are copies of each other share whole subtrees of their trees of
// blocks, so each node is read once however many volumes have it: what lies below a node with several parents is shared,
// and what lies in a leaf of one volume alone is shared if a leaf elsewhere has it too.
type sharing struct {
	ctx      context.Context //nolint:containedctx // lives as long as one count
	metadata io.ReaderAt
	blocks   uint64 // of data that the pool has
	subtrees map[uint64]*subtree
	once     bitmap // blocks that some leaf has
	often    bitmap // blocks that two or more have
	nodes    [maxDepth + 1][]byte
}

// A subtree is what is known of a node of a volume's tree and of all below it.
type subtree struct {
	parents int    // nodes and volumes that lead to it
	mapped  uint64 // blocks
	height  int    // 1 of a leaf, 0 while it is being counted
}

// readSharing returns, by ascending id, how many blocks each volume has, in the state that a superblock or a metadata
// snapshot stands for. What is damaged is an error that names the block of the metadata.
func readSharing(ctx context.Context, metadata io.ReaderAt, sb superblock) ([]blocksOf, error) {
	s := &sharing{
		ctx: ctx, metadata: metadata, blocks: sb.data.total,
		subtrees: map[uint64]*subtree{}, once: bitmap{}, often: bitmap{},
	}
	var volumes []blocksOf
	var roots []uint64
	err := eachEntry(ctx, metadata, sb.mapping, 8, func(id uint64, value []byte) error {
		if err := checkVolume(id, len(volumes) > 0, func() uint32 { return volumes[len(volumes)-1].ID }); err != nil {
			return err
		}
		volumes = append(volumes, blocksOf{ID: uint32(id)})
		roots = append(roots, binary.LittleEndian.Uint64(value))
		return nil
	})
	for i := range volumes {
		if err == nil {
			volumes[i].Mapped, err = s.count(roots[i])
		}
	}
	for i := range volumes { // when all have been counted
		if err == nil {
			volumes[i].Exclusive, err = s.exclusive(roots[i], 1)
		}
	}
	if err != nil {
		return nil, err
	}
	return volumes, nil
}

// count counts the tree of a volume.
func (s *sharing) count(root uint64) (mapped uint64, err error) {
	t, err := s.visit(root, 1)
	if err != nil {
		return 0, err
	}
	return t.mapped, nil
}

// visit notes that one more leads to a node, and counts what is below it at the first time.
func (s *sharing) visit(block uint64, depth int) (*subtree, error) {
	t := s.subtrees[block]
	if t == nil {
		t = &subtree{}
		s.subtrees[block] = t
		if err := s.read(t, block, depth); err != nil {
			return nil, err
		}
	} else if t.height == 0 {
		return nil, fmt.Errorf("block %d of the pool's metadata is below itself", block)
	}
	if depth+t.height-1 > maxDepth {
		return nil, fmt.Errorf("a volume's tree of blocks is deeper than %d at block %d", maxDepth, block)
	}
	t.parents++
	return t, nil
}

// read reads a node and what is below it.
func (s *sharing) read(t *subtree, block uint64, depth int) error {
	node, err := s.node(block, depth)
	if err != nil {
		return err
	}
	height := 1
	for i := range node.entries {
		if i > 0 && node.key(i) <= node.key(i-1) {
			return fmt.Errorf("block %d of the pool's metadata has the key %d behind %d", block, node.key(i), node.key(i-1))
		}
		if !node.leaf {
			child, err := s.visit(node.number(i), depth+1)
			if err != nil {
				return err
			}
			t.mapped += child.mapped
			height = max(height, child.height+1)
			continue
		}
		data := node.number(i) >> timeBits
		if data >= s.blocks {
			return fmt.Errorf("block %d of the pool's metadata leads to block %d of the data, which has %d", block, data, s.blocks)
		}
		if s.once.has(data) {
			s.often.add(data)
		}
		s.once.add(data)
		t.mapped++
	}
	t.height = height
	return nil
}

// node reads a node of a volume's tree into memory that is used again for the next one of that depth.
func (s *sharing) node(block uint64, depth int) (btreeNode, error) {
	if err := s.ctx.Err(); err != nil {
		return btreeNode{}, err
	}
	if depth > maxDepth {
		return btreeNode{}, fmt.Errorf("a volume's tree of blocks is deeper than %d at block %d", maxDepth, block)
	}
	if s.nodes[depth] == nil {
		s.nodes[depth] = make([]byte, metadataBlock)
	}
	return readNode(s.metadata, block, 8, s.nodes[depth])
}

// exclusive returns how many blocks below a node no other volume has.
func (s *sharing) exclusive(block uint64, depth int) (own uint64, err error) {
	if s.subtrees[block].parents > 1 {
		return 0, nil
	}
	node, err := s.node(block, depth)
	if err != nil {
		return 0, err
	}
	for i := range node.entries {
		if node.leaf {
			if !s.often.has(node.number(i) >> timeBits) {
				own++
			}
			continue
		}
		child := node.number(i)
		if s.subtrees[child] == nil { // it is not what it was when it was read before
			return 0, fmt.Errorf("block %d of the pool's metadata changes", block)
		}
		below, err := s.exclusive(child, depth+1)
		if err != nil {
			return 0, err
		}
		own += below
	}
	return own, nil
}

// A bitmap is a set of numbers, in pages.
type bitmap map[uint64]*[512]uint64

const bitmapPage = 512 * 64

func (m bitmap) has(n uint64) bool {
	page := m[n/bitmapPage]
	return page != nil && page[n%bitmapPage/64]&(1<<(n%64)) != 0
}

func (m bitmap) add(n uint64) {
	page := m[n/bitmapPage]
	if page == nil {
		page = new([512]uint64)
		m[n/bitmapPage] = page
	}
	page[n%bitmapPage/64] |= 1 << (n % 64)
}
