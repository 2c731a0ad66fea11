package dmthin

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// tHead returns the first bytes of a file system of 1 GiB that the programs of Debian 12 made with the options of format.
func tHead(tb testing.TB, name string) []byte {
	tb.Helper()
	head, err := os.ReadFile(filepath.Join("testdata", name+".head"))
	require.NoError(tb, err)
	require.Len(tb, head, fsHeadSize)
	return head
}

// The figures are those that dumpe2fs and xfs_db print.
func TestParseHead(t *testing.T) {
	for name, want := range map[string]fsState{
		"ext4": {blockSize: 4096, blocks: 262144, inodes: 11},
		"xfs":  {blockSize: 4096, blocks: 262144, inodes: 3, dirty: true, maxInodes: 25, tailBlocks: 64},
	} {
		fs, state, err := parseHead(tHead(t, name))
		require.NoError(t, err)
		require.Equal(t, name, fs.String())
		require.Equal(t, want, state, name)

		byName, err := fsByName(name)
		require.NoError(t, err)
		require.Equal(t, fs, byName)
	}
	_, err := fsByName("btrfs")
	require.ErrorContains(t, err, `"btrfs" is none of [ext4 xfs]`)
}

func TestParseHeadOfNone(t *testing.T) {
	_, _, err := parseHead(make([]byte, fsHeadSize))
	require.ErrorIs(t, err, errNoFilesystem)
	require.ErrorContains(t, err, "blank")
	other := make([]byte, fsHeadSize)
	copy(other, "BTRFS")
	_, _, err = parseHead(other)
	require.ErrorIs(t, err, errNoFilesystem)
	_, _, err = parseHead(nil)
	require.ErrorIs(t, err, errNoFilesystem)
}

func TestParseHeadDamaged(t *testing.T) {
	for _, c := range []struct {
		name   string
		damage func(head []byte)
		want   string
	}{
		{"ext4", func(b []byte) { b[ext4LogBlockSize] = 7 }, "ext4 with blocks of 2^7 KiB"},
		{"ext4", func(b []byte) { b[ext4FreeInodesCount+3] = 0xff }, "free inodes of 65536"},
		{"xfs", func(b []byte) { b[xfsBlockSize+3] = 1 }, "xfs with blocks of 4097 bytes"},
		{"xfs", func(b []byte) { b[xfsFreeInodes] = 1 }, "free inodes of 64"},
	} {
		head := tHead(t, c.name)
		c.damage(head)
		_, _, err := parseHead(head)
		require.ErrorContains(t, err, c.want)
		require.NotErrorIs(t, err, errNoFilesystem)
	}
}

func TestParseExt4(t *testing.T) {
	head := tHead(t, "ext4")
	binary.LittleEndian.PutUint32(head[ext4BlocksCountHigh:], 1)
	head[ext4FeatureIncompat] |= ext4Recover
	state, err := ext4{}.parse(head)
	require.NoError(t, err)
	require.Equal(t, uint64(1<<32+262144), state.blocks)
	require.True(t, state.dirty)

	head[ext4FeatureIncompat] &^= ext464Bit
	state, err = ext4{}.parse(head)
	require.NoError(t, err)
	require.EqualValues(t, 262144, state.blocks, "the upper half is something else then")
}

// Whatever a device begins with is understood or refused.
func FuzzParseHead(f *testing.F) {
	f.Add(tHead(f, "ext4"))
	f.Add(tHead(f, "xfs"))
	f.Add(make([]byte, fsHeadSize))
	f.Fuzz(func(t *testing.T, head []byte) {
		fs, state, err := parseHead(head)
		if err == nil && (fs == nil || state.blockSize < 512 || state.blockSize > 64<<10 || state.inodes < 0) {
			t.Errorf("%v, %+v", fs, state)
		}
	})
}
