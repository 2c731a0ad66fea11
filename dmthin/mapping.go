package dmthin

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
)

// blocksOf are how many blocks of the pool a volume has: all, those that no other volume has too, and those that only it and
// volumes made upon it have.
type blocksOf struct {
	ID                       uint32
	Mapped, Exclusive, Freed uint64
}

// timeBits is how many bits of a mapping say when it was made; the others are the block (pack_block_time in
// drivers/md/dm-thin-metadata.c).
const timeBits = 24

// A sharing counts who has which blocks. Volumes that are copies of each other share whole subtrees of their trees of
// blocks, so each node is looked at twice however many volumes have it: once to know what is below it, and once, when it is known
// who leads to it, to know whose that is.
//
// What is kept is some bytes for each node, and 4 for each block that is mapped.
type sharing struct {
	ctx      context.Context //nolint:containedctx // lives as long as one count
	metadata io.ReaderAt
	blocks   uint64 // of data that the pool has
	subtrees map[uint64]*subtree
	family   *family
	owners   owners
	progress func(blocks int) // told of each leaf that was looked at
	nodes    [maxDepth + 1][]byte
}

// A subtree is what is known of a node of a volume's tree and of all below it.
type subtree struct {
	mapped uint64 // blocks
	height int    // 1 of a leaf, 0 while it is being counted
	owner  owner  // of the node
}

// readSharing returns, by ascending id, how many blocks each volume has, in the state that a superblock or a metadata
// snapshot stands for; parents says upon which volume one is made. What is damaged is an error that names the block of the
// metadata. progress, if it is not nil, is told how many blocks were looked at, of about twice those in use.
func readSharing(ctx context.Context, metadata io.ReaderAt, sb superblock, parents map[uint32]uint32, progress func(blocks int)) ([]blocksOf, error) {
	if progress == nil {
		progress = func(int) {}
	}
	s := &sharing{
		ctx: ctx, metadata: metadata, blocks: sb.data.total, subtrees: map[uint64]*subtree{}, owners: owners{}, progress: progress,
	}
	var volumes []blocksOf
	var roots []uint64
	err := eachEntry(ctx, metadata, "volumes", sb.mapping, 8, func(id uint64, value []byte) error {
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
	if err == nil {
		err = s.attribute(volumes, roots, parents)
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

// visit counts what is below a node at the first time that something leads to it.
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
		t.mapped++
	}
	t.height = height
	if node.leaf {
		s.progress(node.entries)
	}
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
