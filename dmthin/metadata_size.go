package dmthin

const (
	sector = 512 // bytes; what the kernel counts devices in

	metadataBlock = 4096    // bytes; THIN_METADATA_BLOCK_SIZE
	minMetadata   = 2 << 20 // bytes; what the kernel's documentation asks for at least

	// The kernel uses 255 space map bitmaps of 16320 entries each, and no block beyond (THIN_METADATA_MAX_SECTORS).
	maxMetadata = 255 * ((1 << 14) - 64) * metadataBlock

	// A leaf of a mapping tree has 252 entries at most, and half of them after a split.
	entriesPerLeaf = 126
)

// metadataSize returns how large the metadata device of a pool should be, in bytes: one leaf for each entriesPerLeaf
// blocks of data, one for each volume, and the superblock, as thin_metadata_size of thin-provisioning-tools reckons; and
// no less than the 48 bytes a block that the kernel's documentation gives as a rule of thumb
// (Documentation/admin-guide/device-mapper/thin-provisioning.rst), for volumes that share blocks do not share all leaves.
func metadataSize(data, block, volumes uint64) uint64 {
	blocks := divideUp(data, block)
	size := max((divideUp(blocks, entriesPerLeaf)+1+volumes)*metadataBlock, 48*blocks)
	size = divideUp(size, metadataBlock) * metadataBlock
	return min(max(size, minMetadata), maxMetadata)
}

func divideUp(n, by uint64) uint64 { return (n + by - 1) / by }
