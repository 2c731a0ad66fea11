package dmthin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"slices"
)

// readAdded returns how many blocks a volume has that its origin has not at the same place: what was written since it was
// copied. root and origin are where their trees of blocks begin.
func readAdded(ctx context.Context, metadata io.ReaderAt, root, origin uint64) (blocks uint64, err error) {
	err = eachAdded(ctx, metadata, root, origin, func(uint64) { blocks++ })
	return blocks, err
}

// eachAdded calls fn with the places, in blocks, of what readAdded counts. Subtrees that both have are not read, so it costs what is
// different, and the inner nodes of the origin's tree.
func eachAdded(ctx context.Context, metadata io.ReaderAt, root, origin uint64, fn func(key uint64)) error {
	c := &comparison{ctx: ctx, metadata: metadata, common: map[uint64]bool{}, seen: map[uint64]bool{}, origin: origin, fn: fn}
	if err := c.collect(origin, 1); err != nil {
		return err
	}
	return c.added(root, 1)
}

// A comparison is one run of eachAdded.
type comparison struct {
	ctx      context.Context //nolint:containedctx // lives as long as one call
	metadata io.ReaderAt
	origin   uint64 // where its tree begins
	fn       func(key uint64)
	common   map[uint64]bool // nodes of the origin's tree
	seen     map[uint64]bool // nodes of the volume's own
	height   int             // of that tree; its leaves are all at one depth

	// The leaf of the origin that was looked at last, and the keys that it is for.
	leaf     btreeNode
	from, to uint64
}

func (c *comparison) node(block uint64, depth int) (btreeNode, error) {
	if err := c.ctx.Err(); err != nil {
		return btreeNode{}, err
	}
	if depth > maxDepth {
		return btreeNode{}, fmt.Errorf("a volume's tree of blocks is deeper than %d at block %d", maxDepth, block)
	}
	return readNode(c.metadata, block, 8, make([]byte, metadataBlock))
}

// collect notes the nodes of the origin's tree. Of the leaves it reads the first alone.
func (c *comparison) collect(block uint64, depth int) error {
	if c.common[block] {
		return fmt.Errorf("block %d is in a volume's tree of blocks twice", block)
	}
	c.common[block] = true
	if depth == c.height {
		return nil
	}
	node, err := c.node(block, depth)
	if err != nil {
		return err
	}
	if node.leaf {
		c.height = depth
		return nil
	}
	for i := range node.entries {
		if err := c.collect(node.number(i), depth+1); err != nil {
			return err
		}
	}
	return nil
}

// added calls fn for what is below a node of the volume's tree.
func (c *comparison) added(block uint64, depth int) error {
	if c.common[block] {
		return nil
	}
	if c.seen[block] { // no tree leads to a node twice, and a damaged one could do so without end
		return fmt.Errorf("block %d is in a volume's tree of blocks twice", block)
	}
	c.seen[block] = true
	node, err := c.node(block, depth)
	if err != nil {
		return err
	}
	for i := range node.entries {
		if !node.leaf {
			if err := c.added(node.number(i), depth+1); err != nil {
				return err
			}
			continue
		}
		was, ok, err := c.inOrigin(node.key(i))
		if err != nil {
			return err
		}
		if !ok || was>>timeBits != node.number(i)>>timeBits {
			c.fn(node.key(i))
		}
	}
	return nil
}

// inOrigin returns what the origin has at a key. Keys that come one after the other are mostly in one leaf.
func (c *comparison) inOrigin(key uint64) (value uint64, ok bool, err error) {
	if c.leaf.b == nil || key < c.from || key >= c.to {
		if err := c.seek(key); err != nil {
			return 0, false, err
		}
	}
	i := c.leaf.search(key)
	if i < 0 {
		return 0, false, nil
	}
	return c.leaf.number(i), c.leaf.key(i) == key, nil
}

// seek reads the leaf of the origin that a key would be in.
func (c *comparison) seek(key uint64) error {
	c.from, c.to = 0, math.MaxUint64
	for block, depth := c.origin, 1; ; depth++ {
		node, err := c.node(block, depth)
		if err != nil {
			return err
		}
		if node.leaf {
			c.leaf = node
			return nil
		}
		if node.entries == 0 {
			return fmt.Errorf("block %d of the pool's metadata is an empty inner node", block)
		}
		i := max(0, node.search(key))
		if i+1 < node.entries {
			c.to = node.key(i + 1)
		}
		if i > 0 || node.key(0) <= key {
			c.from = node.key(i)
		}
		block = node.number(i)
	}
}

// Added returns how many bytes volume id has that its origin has not: what deleting it, once nothing is upon it, gives
// back. What was written to them must have been flushed. It needs neither volume to be active.
func (p *Pool) Added(ctx context.Context, id, origin uint32) (bytes uint64, err error) {
	var blocks uint64
	err = p.compareTrees(ctx, id, origin, func(metadata io.ReaderAt, root, origin uint64) (err error) {
		blocks, err = readAdded(ctx, metadata, root, origin)
		return err
	})
	if err != nil {
		return 0, err
	}
	return blocks * p.block, nil
}

// differing returns the places at which two volumes have different blocks, or one of them has none, in blocks of the pool. What is elsewhere is
// the same in both. What was written to them must have been flushed.
func (p *Pool) differing(ctx context.Context, id, other uint32) (bitmap, error) {
	var places bitmap // no result of this function: what is left behind when ctx ends goes on with it
	err := p.compareTrees(ctx, id, other, func(metadata io.ReaderAt, root, origin uint64) error {
		places = bitmap{}
		return errors.Join(
			eachAdded(ctx, metadata, root, origin, places.add),
			eachAdded(ctx, metadata, origin, root, places.add))
	})
	if err != nil {
		return nil, err
	}
	return places, nil
}

// compareTrees calls fn with where the trees of blocks of two volumes begin; what counts is the last call.
//
// The trees of blocks of a volume that is not written stay where they are, whatever the pool does. One that has been written
// meanwhile, as its journal was replayed, is looked at once more.
func (p *Pool) compareTrees(ctx context.Context, id, origin uint32, fn func(metadata io.ReaderAt, root, origin uint64) error) error {
	err := errChanging
	for range compareTries {
		if err = p.compareTreesOnce(ctx, id, origin, fn); !errors.Is(err, errChanging) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("compare volume %d with volume %d: %w", id, origin, err)
	}
	return nil
}

const compareTries = 3

func (p *Pool) compareTreesOnce(ctx context.Context, id, origin uint32, fn func(metadata io.ReaderAt, root, origin uint64) error) error {
	before, err := p.treesOf(ctx, id, origin)
	if err != nil {
		return err
	}
	readErr := p.withMetadata(ctx, func(metadata io.ReaderAt) error {
		return fn(newNodeCache(metadata), before[0], before[1])
	})
	after, err := p.treesOf(ctx, id, origin)
	switch {
	case err != nil:
		return err
	case !slices.Equal(before, after):
		return errChanging
	}
	return readErr
}

// treesOf returns where the trees of blocks of volumes begin.
func (p *Pool) treesOf(ctx context.Context, ids ...uint32) ([]uint64, error) {
	var roots []uint64
	look := func(metadata io.ReaderAt, sb superblock) error {
		roots = nil
		for _, id := range ids {
			root, ok, err := find(metadata, sb.mapping, uint64(id))
			if err == nil && !ok {
				err = fmt.Errorf("the pool has no volume %d: %w", id, fs.ErrNotExist)
			}
			if err != nil {
				return err
			}
			roots = append(roots, root)
		}
		return nil
	}
	if err := p.do(ctx, func() error { return p.readTrees(ctx, look) }, metadataSnapLock); err != nil {
		return nil, err
	}
	return roots, nil
}

// withMetadata calls fn with the metadata of the running pool. What fn sets may be read only if it returns nil.
func (p *Pool) withMetadata(ctx context.Context, fn func(metadata io.ReaderAt) error) error {
	return p.boundedLate(ctx, "read the metadata of "+p.name, func() error {
		device, err := openDirect(p.metadataPath, os.O_RDONLY)
		if err != nil {
			return err
		}
		return errors.Join(fn(device), device.Close())
	})
}
