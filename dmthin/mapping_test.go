package dmthin

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// sharing reads the running pool's metadata.
func (p *testPool) sharing(t *testing.T, parents Genealogy) (volumes []blocksOf) {
	t.Helper()
	require.NoError(t, p.do(t.Context(), func() error {
		return p.readTrees(t.Context(), func(metadata io.ReaderAt, sb superblock) (err error) {
			volumes, err = readSharing(t.Context(), metadata, sb, parents, nil)
			return err
		})
	}, metadataSnapLock))
	return volumes
}

// withoutFreed leaves what thin_ls knows too.
func withoutFreed(volumes []blocksOf) []blocksOf {
	for i := range volumes {
		volumes[i].Freed = 0
	}
	return volumes
}

// thinLsBlocks is what thin_ls counts, which reads the same by other ways.
func (p *testPool) thinLsBlocks(t *testing.T) (volumes []blocksOf) {
	t.Helper()
	require.NoError(t, p.control.ReserveMetadataSnap(p.name))
	out, err := exec.Command("thin_ls", "--no-headers", "-m", "-o", "DEV,MAPPED_BLOCKS,EXCLUSIVE_BLOCKS", p.metadata.path).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.NoError(t, p.control.ReleaseMetadataSnap(p.name))
	for line := range strings.Lines(string(out)) {
		var v blocksOf
		_, err := fmt.Sscan(line, &v.ID, &v.Mapped, &v.Exclusive)
		require.NoError(t, err, "%q", line)
		volumes = append(volumes, v)
	}
	return volumes
}

// scatter writes into n blocks of a volume, here and there.
func (p *testPool) scatter(t *testing.T, id uint32, rng *rand.Rand, n int) {
	t.Helper()
	require.NoError(t, p.Use(t.Context(), id, testVolume, false, func(device string) error {
		f, err := os.OpenFile(device, os.O_WRONLY, 0)
		require.NoError(t, err)
		for range n {
			_, err := f.WriteAt([]byte("x"), rng.Int64N(testVolume/testBlock)*testBlock)
			require.NoError(t, err)
		}
		require.NoError(t, f.Sync())
		return f.Close()
	}))
}

// thinDelta returns how many blocks a volume has that its origin has not, by thin_delta.
func (p *testPool) thinDelta(t *testing.T, id, origin uint32) (blocks uint64) {
	t.Helper()
	require.NoError(t, p.control.ReserveMetadataSnap(p.name))
	out, err := exec.Command("thin_delta", "-m", "--snap1", number(origin), "--snap2", number(id), p.metadata.path).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.NoError(t, p.control.ReleaseMetadataSnap(p.name))
	for _, m := range regexp.MustCompile(`<(different|right_only) begin="\d+" length="(\d+)"`).FindAllStringSubmatch(string(out), -1) {
		n, err := strconv.ParseUint(m[2], 10, 64)
		require.NoError(t, err)
		blocks += n
	}
	return blocks
}

// Volumes that are copies of each other in every way, at random: the counts are those of thin_ls and thin_delta.
func TestSharing(t *testing.T) {
	p := newPool(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	require.Empty(t, p.sharing(t, nil))
	require.NoError(t, p.Create(t.Context(), 1))
	require.Equal(t, []blocksOf{{ID: 1}}, p.sharing(t, nil))
	p.scatter(t, 1, rng, 1000)
	origins := map[uint32]uint32{}
	for id := uint32(2); id <= 16; id++ {
		origins[id] = 1 + rng.Uint32N(id-1)
		require.NoError(t, p.Snapshot(t.Context(), id, origins[id]))
		p.scatter(t, id, rng, rng.IntN(100))
	}
	require.Equal(t, p.thinLsBlocks(t), withoutFreed(p.sharing(t, nil)))
	for id := uint32(2); id <= 16; id++ {
		added, err := p.Added(t.Context(), id, origins[id])
		require.NoError(t, err)
		require.Equal(t, p.thinDelta(t, id, origins[id])*testBlock, added, "volume %d of %d", id, origins[id])
	}
	added, err := p.Added(t.Context(), 1, 1)
	require.NoError(t, err)
	require.Zero(t, added)
	for id := uint32(3); id <= 16; id += 2 {
		require.NoError(t, p.Delete(t.Context(), id, 0, false))
	}
	require.Equal(t, p.thinLsBlocks(t), withoutFreed(p.sharing(t, nil)))
	_, err = p.Added(t.Context(), 2, 3)
	require.ErrorIs(t, err, os.ErrNotExist)
	for _, id := range []uint32{16, 10, 4, 2, 1} {
		p.requireFreed(t, id, origins)
	}
}

// requireFreed deletes a volume and all that are made upon it, and wants the pool to have so many blocks more as was told before.
func (p *testPool) requireFreed(t *testing.T, id uint32, origins Genealogy) {
	t.Helper()
	isUpon := func(v uint32) bool {
		for v != 0 && v != id {
			v = origins[v]
		}
		return v == id
	}
	freed, deleted := uint64(0), 0
	before, err := p.Status(t.Context())
	require.NoError(t, err)
	for _, v := range p.sharing(t, origins) {
		if v.ID == id {
			freed = v.Freed
		}
		if isUpon(v.ID) {
			require.NoError(t, p.Delete(t.Context(), v.ID, 0, false))
			deleted++
		}
	}
	after, err := p.Status(t.Context())
	require.NoError(t, err)
	require.Equal(t, freed, before.DataUsed-after.DataUsed, "volume %d, and %d in all", id, deleted)
	t.Logf("volume %d, with those upon it %d, had %d blocks", id, deleted, freed)
}

// A thousand volumes that differ little cost what is different.
func TestSharingOfManyVolumes(t *testing.T) {
	p := newPool(t)
	rng := rand.New(rand.NewPCG(1, 1))
	require.NoError(t, p.Create(t.Context(), 1))
	p.scatter(t, 1, rng, 2_000)
	for id := uint32(2); id <= 1000; id++ {
		require.NoError(t, p.Snapshot(t.Context(), id, id-1))
		if id%50 == 0 {
			p.scatter(t, id, rng, 10)
		}
	}
	begun := time.Now()
	volumes := withoutFreed(p.sharing(t, nil))
	t.Logf("%d volumes of %d blocks in %v", len(volumes), volumes[0].Mapped, time.Since(begun))
	require.Equal(t, p.thinLsBlocks(t), volumes)
	begun = time.Now()
	added, err := p.Added(t.Context(), 1000, 999)
	t.Logf("%d bytes between two of them in %v", added, time.Since(begun))
	require.NoError(t, err)
	require.Equal(t, p.thinDelta(t, 1000, 999)*testBlock, added)
}

// block is a mapping as the kernel packs it.
func block(n uint64) uint64 { return n<<timeBits | 7 }

// putMapping adds a node of a tree whose leaves have numbers.
func (m blocks) putMapping(at uint64, flags uint32, keys, values []uint64) {
	b := make([]byte, metadataBlock)
	for offset, v := range map[int]int{nodeFlags: int(flags), nodeEntries: len(keys), nodeMost: 252, nodeValue: 8} {
		binary.LittleEndian.PutUint32(b[offset:], uint32(v))
	}
	for i := range keys {
		binary.LittleEndian.PutUint64(b[nodeHeader+8*i:], keys[i])
		binary.LittleEndian.PutUint64(b[nodeHeader+8*252+8*i:], values[i])
	}
	m[at] = seal(b, at, nodeSalt)
}

// smallMapping has three volumes. Those of 1 and 2 share the leaf 20; block 102 is in two leaves.
func smallMapping() (m blocks, sb superblock) {
	m = blocks{}
	m.putMapping(6, leafNode, []uint64{1, 2, 9}, []uint64{10, 11, 22})
	m.putMapping(10, internalNode, []uint64{0, 50}, []uint64{20, 21})
	m.putMapping(11, internalNode, []uint64{0, 50}, []uint64{20, 23})
	m.putMapping(20, leafNode, []uint64{0, 1}, []uint64{block(100), block(101)})
	m.putMapping(21, leafNode, []uint64{50, 60}, []uint64{block(102), block(103)})
	m.putMapping(22, leafNode, []uint64{0}, []uint64{block(104)})
	m.putMapping(23, leafNode, []uint64{50, 60, 70}, []uint64{block(102), block(105), block(106)})
	return m, superblock{mapping: 6, data: space{total: 200}}
}

func TestReadSharing(t *testing.T) {
	m, sb := smallMapping()
	for _, c := range []struct {
		parents Genealogy
		freed   [3]uint64 // of 1, 2 and 9
	}{
		{nil, [3]uint64{1, 2, 1}},
		{Genealogy{2: 1, 9: 1}, [3]uint64{7, 2, 1}},
		{Genealogy{1: 2}, [3]uint64{1, 6, 1}},
		{Genealogy{1: 5, 2: 5, 5: 9}, [3]uint64{1, 2, 7}}, // 5 is not in the pool
		{Genealogy{1: 2, 2: 9, 9: 1}, [3]uint64{}},        // nobody's, or somebody's, and no loop for ever
		{Genealogy{1: 1}, [3]uint64{1, 2, 1}},
	} {
		blocks := 0
		got, err := readSharing(t.Context(), m, sb, c.parents, func(n int) { blocks += n })
		require.NoError(t, err)
		if c.freed != [3]uint64{} {
			require.Equal(t, []blocksOf{{1, 4, 1, c.freed[0]}, {2, 5, 2, c.freed[1]}, {9, 1, 1, c.freed[2]}}, got, c.parents)
		}
		require.Equal(t, 2*8, blocks, "each entry of each leaf is looked at twice")
	}
	for _, c := range []struct{ root, origin, want uint64 }{{11, 10, 2}, {10, 11, 1}, {22, 10, 1}, {10, 22, 4}, {10, 10, 0}} {
		added, err := readAdded(t.Context(), m, c.root, c.origin)
		require.NoError(t, err)
		require.Equal(t, c.want, added, "%d upon %d", c.root, c.origin)
	}
}

func TestReadSharingOfDamagedMetadata(t *testing.T) {
	for want, damage := range map[string]func(blocks){
		"block 20 of the pool's metadata is no node of its tree: checksum": func(m blocks) { m[20][4000]++ },
		"block 10 of the pool's metadata is below itself": func(m blocks) {
			m.putMapping(21, internalNode, []uint64{50}, []uint64{10})
		},
		"block 21 of the pool's metadata has the key 50 behind 60": func(m blocks) {
			m.putMapping(21, leafNode, []uint64{60, 50}, []uint64{block(1), block(2)})
		},
		"block 21 of the pool's metadata leads to block 200 of the data, which has 200": func(m blocks) {
			m.putMapping(21, leafNode, []uint64{60}, []uint64{block(200)})
		},
		"unexpected EOF": func(m blocks) { delete(m, 22) },
		"deeper than 8 at block 108": func(m blocks) {
			for at := range uint64(20) {
				m.putMapping(100+at, internalNode, []uint64{0}, []uint64{101 + at})
			}
			m.putMapping(10, internalNode, []uint64{0}, []uint64{101})
		},
	} {
		m, sb := smallMapping()
		damage(m)
		_, err := readSharing(t.Context(), m, sb, nil, nil)
		require.ErrorContains(t, err, want)
	}
}

// FuzzReadSharing reads any blocks as metadata: they may be found damaged, and nothing worse.
func FuzzReadSharing(f *testing.F) {
	m := blocks{}
	m.putMapping(0, leafNode, []uint64{1, 2}, []uint64{1, 2})
	m.putMapping(1, internalNode, []uint64{0}, []uint64{3})
	m.putMapping(2, internalNode, []uint64{0, 50}, []uint64{3, 4})
	m.putMapping(3, leafNode, []uint64{0, 1}, []uint64{block(100), block(101)})
	m.putMapping(4, leafNode, []uint64{50}, []uint64{block(102)})
	image := make([]byte, len(m)*metadataBlock)
	for at, b := range m {
		copy(image[at*metadataBlock:], b)
	}
	f.Add(image, uint64(0), uint64(200), uint64(2), uint64(1))
	f.Fuzz(func(t *testing.T, image []byte, root, total, volume, origin uint64) {
		image = bytes.Clone(image)
		for at := 0; (at+1)*metadataBlock <= len(image); at++ {
			seal(image[at*metadataBlock:][:metadataBlock], uint64(at), nodeSalt)
		}
		volumes, err := readSharing(t.Context(), bytes.NewReader(image), superblock{mapping: root, data: space{total: total}}, nil, nil)
		for _, v := range volumes {
			if err == nil && v.Exclusive > v.Mapped {
				t.Errorf("volume %d has %d blocks, and %d of its own", v.ID, v.Mapped, v.Exclusive)
			}
		}
		_, _ = readAdded(t.Context(), bytes.NewReader(image), volume, origin)
	})
}
