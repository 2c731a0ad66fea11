package dmthin

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"
)

func validSuperblock() []byte {
	b := make([]byte, superblockSize)
	binary.LittleEndian.PutUint64(b[offsetMagic:], superblockMagic)
	binary.LittleEndian.PutUint32(b[offsetVersion:], 2)
	binary.LittleEndian.PutUint64(b[offsetTransaction:], 42)
	binary.LittleEndian.PutUint32(b[offsetBlockSize:], 128)
	binary.LittleEndian.PutUint32(b[offsetChecksum:], checksum(b, superblockSalt))
	return b
}

// That the kernel agrees is shown by TestStartAgain.
func TestParseSuperblock(t *testing.T) {
	got, err := parseSuperblock(validSuperblock())
	require.NoError(t, err)
	require.Equal(t, superblock{Transaction: 42, BlockSize: 64 << 10}, got)

	_, err = parseSuperblock(make([]byte, superblockSize))
	require.ErrorIs(t, err, errNoPool)
	foreign := make([]byte, superblockSize)
	foreign[100] = 1
	_, err = parseSuperblock(foreign)
	require.ErrorIs(t, err, errForeign)
	damaged := validSuperblock()
	damaged[offsetTransaction]++
	_, err = parseSuperblock(damaged)
	require.ErrorContains(t, err, "checksum")
	later := validSuperblock()
	binary.LittleEndian.PutUint32(later[offsetVersion:], 3)
	binary.LittleEndian.PutUint32(later[offsetChecksum:], checksum(later, superblockSalt))
	_, err = parseSuperblock(later)
	require.ErrorContains(t, err, "version 3")
}

func FuzzParseSuperblock(f *testing.F) {
	f.Add(validSuperblock())
	f.Add([]byte{})
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = parseSuperblock(b) })
}

func TestMetadataSize(t *testing.T) {
	for _, c := range []struct{ data, block, volumes, want uint64 }{
		{1 << 20, 64 << 10, 1, minMetadata},
		{100 << 30, 64 << 10, 1000, 48 * (100 << 30 / (64 << 10))},
		{100 << 30, 64 << 10, 100_000, (13004 + 1 + 100_000) * metadataBlock},
		{1 << 50, 64 << 10, 1, maxMetadata},
	} {
		require.Equal(t, c.want, metadataSize(c.data, c.block, c.volumes))
	}
}
