package dmthin

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
)

// volumeDetails is what a pool's metadata say of a volume.
type volumeDetails struct {
	ID     uint32
	Mapped uint64 // blocks of the pool, be they its own or shared
}

// Where the tree of all volumes is, in a superblock, and what the kernel writes for each (struct disk_device_details in
// drivers/md/dm-thin-metadata.c): u64 mapped_blocks, u64 transaction_id, u32 creation_time, u32 snapshotted_time.
const (
	offsetBlockNumber = 8
	offsetDetailsRoot = 328
	detailsSize       = 24
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

// readDetails returns all volumes, by ascending id, that the superblock leads to, if held is 0, or the metadata snapshot at
// that block.
// metadata is read by whole blocks. All that is read is checked, so that metadata that are damaged, or not a snapshot's,
// are an error and never another list of volumes.
func readDetails(ctx context.Context, metadata io.ReaderAt, held uint64) (volumes []volumeDetails, err error) {
	b := make([]byte, metadataBlock)
	root, err := readDetailsRoot(metadata, held, b)
	if err != nil {
		return nil, err
	}
	type subtree struct {
		block uint64
		depth int
	}
	seen := map[uint64]bool{}
	for todo := []subtree{{root, 1}}; len(todo) > 0; {
		next := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		switch err := ctx.Err(); {
		case err != nil:
			return nil, err
		case next.depth > maxDepth:
			return nil, fmt.Errorf("the pool's tree of volumes is deeper than %d at block %d", maxDepth, next.block)
		case seen[next.block]: // or a cycle would have no end
			return nil, fmt.Errorf("block %d is in the pool's tree of volumes twice", next.block)
		}
		seen[next.block] = true
		node, err := readNode(metadata, next.block, b)
		if err != nil {
			return nil, err
		}
		if node.leaf {
			if volumes, err = node.appendDetails(volumes); err != nil {
				return nil, err
			}
			continue
		}
		for i := node.entries - 1; i >= 0; i-- { // the first one is taken next
			todo = append(todo, subtree{binary.LittleEndian.Uint64(node.value(i)), next.depth + 1})
		}
	}
	return volumes, nil
}

// readDetailsRoot returns the block where the tree of volumes begins. A metadata snapshot is a copy of the superblock.
func readDetailsRoot(metadata io.ReaderAt, held uint64, b []byte) (uint64, error) {
	if err := readBlock(metadata, held, b); err != nil {
		return 0, err
	}
	if _, err := parseSuperblock(b); err != nil {
		return 0, fmt.Errorf("metadata snapshot at block %d: %w", held, err)
	}
	if at := binary.LittleEndian.Uint64(b[offsetBlockNumber:]); at != held {
		return 0, fmt.Errorf("metadata snapshot at block %d: it says that it is block %d", held, at)
	}
	return binary.LittleEndian.Uint64(b[offsetDetailsRoot:]), nil
}

func readBlock(metadata io.ReaderAt, block uint64, b []byte) error {
	if block >= maxMetadata/metadataBlock {
		return fmt.Errorf("the pool's metadata point to block %d, which no pool has", block)
	}
	if _, err := metadata.ReadAt(b, int64(block*metadataBlock)); err != nil {
		return fmt.Errorf("read block %d of the pool's metadata: %w", block, err)
	}
	return nil
}

// detailsNode is a node of the tree of volumes that has been checked.
type detailsNode struct {
	b             []byte
	leaf          bool
	entries, most int
	valueSize     int
}

// readNode reads the node at a block into b.
func readNode(metadata io.ReaderAt, block uint64, b []byte) (detailsNode, error) {
	if err := readBlock(metadata, block, b); err != nil {
		return detailsNode{}, err
	}
	n, err := parseNode(b, block)
	if err != nil {
		return detailsNode{}, fmt.Errorf("block %d of the pool's metadata is no node of the tree of volumes: %w", block, err)
	}
	return n, nil
}

func parseNode(b []byte, block uint64) (detailsNode, error) {
	u32 := func(offset int) uint32 { return binary.LittleEndian.Uint32(b[offset:]) }
	if want, got := u32(0), checksum(b, nodeSalt); got != want {
		return detailsNode{}, fmt.Errorf("checksum %08x, not %08x", got, want)
	}
	if at := binary.LittleEndian.Uint64(b[nodeBlock:]); at != block {
		return detailsNode{}, fmt.Errorf("it says that it is block %d", at)
	}
	n := detailsNode{b: b, leaf: u32(nodeFlags) == leafNode, valueSize: 8}
	if n.leaf {
		n.valueSize = detailsSize
	} else if u32(nodeFlags) != internalNode {
		return detailsNode{}, fmt.Errorf("flags %#x", u32(nodeFlags))
	}
	if size := u32(nodeValue); size != uint32(n.valueSize) {
		return detailsNode{}, fmt.Errorf("values of %d bytes, not %d", size, n.valueSize)
	}
	entries, most := u32(nodeEntries), u32(nodeMost)
	if room := uint32((metadataBlock - nodeHeader) / (8 + n.valueSize)); entries > most || most > room {
		return detailsNode{}, fmt.Errorf("%d entries of %d, with room for %d", entries, most, room)
	}
	n.entries, n.most = int(entries), int(most)
	return n, nil
}

func (n detailsNode) key(i int) uint64 { return binary.LittleEndian.Uint64(n.b[nodeHeader+8*i:]) }

func (n detailsNode) value(i int) []byte { return n.b[nodeHeader+8*n.most+n.valueSize*i:] }

// appendDetails appends the volumes of a leaf, which come after those of the leaves before it.
func (n detailsNode) appendDetails(volumes []volumeDetails) ([]volumeDetails, error) {
	for i := range n.entries {
		id := n.key(i)
		if id > dm.MaxThinID {
			return nil, fmt.Errorf("the pool's metadata have a volume %d, and no pool can", id)
		}
		if len(volumes) > 0 && id <= uint64(volumes[len(volumes)-1].ID) {
			return nil, fmt.Errorf("the pool's metadata have volume %d behind volume %d", id, volumes[len(volumes)-1].ID)
		}
		volumes = append(volumes, volumeDetails{uint32(id), binary.LittleEndian.Uint64(n.value(i))})
	}
	return volumes, nil
}
