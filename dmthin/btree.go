package dmthin

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"sort"
)

// A node of the kernel's btrees (struct btree_node in drivers/md/persistent-data/dm-btree-internal.h): this header, room
// for the most keys that it can have, each a u64, and the values. The values of an internal node are the blocks of its
// children. Numbers are little endian.
const (
	nodeSalt = 121107 // BTREE_CSUM_XOR

	nodeFlags   = 4 // u32
	nodeBlock   = 8 // u64, where the node itself is
	nodeEntries = 16
	nodeMost    = 20 // u32, entries that it has room for
	nodeValue   = 24 // u32, bytes of a value
	nodeHeader  = 32

	internalNode = 1 // INTERNAL_NODE
	leafNode     = 2 // LEAF_NODE

	// The kernel merges nodes that are less than a third full, so 2^24 volumes need four levels.
	maxDepth = 8
)

func readBlock(metadata io.ReaderAt, block uint64, b []byte) error {
	if block >= maxMetadata/metadataBlock {
		return fmt.Errorf("the pool's metadata point to block %d, which no pool has", block)
	}
	if _, err := metadata.ReadAt(b, int64(block*metadataBlock)); err != nil {
		return fmt.Errorf("read block %d of the pool's metadata: %w", block, err)
	}
	return nil
}

// btreeNode is a node of one of the btrees that has been checked.
type btreeNode struct {
	b             []byte
	leaf          bool
	entries, most int
	valueSize     int
}

// readNode reads the node at a block into b. leafValue is how many bytes the values of its tree's leaves have.
func readNode(metadata io.ReaderAt, block uint64, leafValue int, b []byte) (btreeNode, error) {
	if err := readBlock(metadata, block, b); err != nil {
		return btreeNode{}, err
	}
	n, err := parseNode(b, block, leafValue)
	if err != nil {
		return btreeNode{}, fmt.Errorf("block %d of the pool's metadata is no node of its tree: %w", block, err)
	}
	return n, nil
}

func parseNode(b []byte, block uint64, leafValue int) (btreeNode, error) {
	u32 := func(offset int) uint32 { return binary.LittleEndian.Uint32(b[offset:]) }
	if want, got := u32(0), checksum(b, nodeSalt); got != want {
		return btreeNode{}, fmt.Errorf("checksum %08x, not %08x", got, want)
	}
	if at := binary.LittleEndian.Uint64(b[nodeBlock:]); at != block {
		return btreeNode{}, fmt.Errorf("it says that it is block %d", at)
	}
	n := btreeNode{b: b, leaf: u32(nodeFlags) == leafNode, valueSize: 8}
	if n.leaf {
		n.valueSize = leafValue
	} else if u32(nodeFlags) != internalNode {
		return btreeNode{}, fmt.Errorf("flags %#x", u32(nodeFlags))
	}
	if size := u32(nodeValue); size != uint32(n.valueSize) {
		return btreeNode{}, fmt.Errorf("values of %d bytes, not %d", size, n.valueSize)
	}
	entries, most := u32(nodeEntries), u32(nodeMost)
	if room := uint32((metadataBlock - nodeHeader) / (8 + n.valueSize)); entries > most || most > room {
		return btreeNode{}, fmt.Errorf("%d entries of %d, with room for %d", entries, most, room)
	}
	n.entries, n.most = int(entries), int(most)
	return n, nil
}

func (n btreeNode) key(i int) uint64 { return binary.LittleEndian.Uint64(n.b[nodeHeader+8*i:]) }

func (n btreeNode) value(i int) []byte { return n.b[nodeHeader+8*n.most+n.valueSize*i:] }

// number returns a value of 8 bytes: the block of a child, or what a leaf of such values holds.
func (n btreeNode) number(i int) uint64 { return binary.LittleEndian.Uint64(n.value(i)) }

// eachEntry calls fn with the entries of a tree of what, by ascending key if the tree is sound.
func eachEntry(ctx context.Context, metadata io.ReaderAt, what string, root uint64, leafValue int, fn func(key uint64, value []byte) error) error {
	type subtree struct {
		block uint64
		depth int
	}
	b := make([]byte, metadataBlock)
	seen := map[uint64]bool{}
	for todo := []subtree{{root, 1}}; len(todo) > 0; {
		next := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		switch err := ctx.Err(); {
		case err != nil:
			return err
		case next.depth > maxDepth:
			return fmt.Errorf("the pool's tree of %s is deeper than %d at block %d", what, maxDepth, next.block)
		case seen[next.block]: // or a cycle would have no end
			return fmt.Errorf("block %d is in the pool's tree of %s twice", next.block, what)
		}
		seen[next.block] = true
		node, err := readNode(metadata, next.block, leafValue, b)
		if err != nil {
			return err
		}
		for i := range node.entries {
			if !node.leaf { // the first one is taken next
				todo = append(todo, subtree{node.number(node.entries - 1 - i), next.depth + 1})
			} else if err := fn(node.key(i), node.value(i)); err != nil {
				return err
			}
		}
	}
	return nil
}

// find returns the value of a key in a tree whose leaves have values of 8 bytes.
func find(metadata io.ReaderAt, root, key uint64) (value uint64, ok bool, err error) {
	b := make([]byte, metadataBlock)
	for block, depth := root, 1; ; depth++ {
		if depth > maxDepth {
			return 0, false, fmt.Errorf("a tree of the pool's metadata is deeper than %d at block %d", maxDepth, block)
		}
		node, err := readNode(metadata, block, 8, b)
		if err != nil {
			return 0, false, err
		}
		i := node.search(key)
		if i < 0 {
			return 0, false, nil
		}
		if node.leaf {
			return node.number(i), node.key(i) == key, nil
		}
		block = node.number(i)
	}
}

// search returns the last entry whose key is no higher than key, -1 if there is none.
func (n btreeNode) search(key uint64) int {
	return sort.Search(n.entries, func(i int) bool { return n.key(i) > key }) - 1
}
