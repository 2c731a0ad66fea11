package integration

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/doctor"
)

// What a [matrix] does with pools that grow while their daemon runs.

// pools kills the daemon while a pool grows, and the commands that change one.
func (m matrix) pools(t *testing.T) {
	t.Helper()
	files := m.onFiles()
	files.grow(t, "grow files", "grow.", "thin.pool-")
	metadata := poolBlocks{path: poolMetadata(files.root())}
	files.repair(t, "a flag", metadata.needCheck)
	files.repair(t, "a file", metadata.loseSpaceMap)
	disk := m.onDisk(t)
	disk.grow(t, "grow on a disk", "grow.", "disk.", "thin.pool-")
	const header = 1 << 20 // bytes before the metadata
	disk.repair(t, "a region", poolBlocks{disk.disks[0], header}.loseSpaceMap)
	disk.trim(t)
	disk.add(t)
}

// A growingPool has little left of its data, and so grows as soon as it can: a few
// MiB each time, after which it still has little.
type growingPool struct {
	matrix
	toml  func(n int) string // the configuration after n growths
	raise func(n int)        // lets it grow for the nth time
	disks []string           // that it is on, if it is
	admin string             // the daemon's socket for an operator, if it is set

	block, count int // bytes; as many are written of the volume "filler"
}

// fillUp makes a pool with a snapshot "kept" and one whose device is written until
// the pool is about to grow.
func (g *growingPool) fillUp(t *testing.T) {
	t.Helper()
	g.place(newDaemon(t, mustTempDir(t), g.backend, g.toml(0)))
	g.start()
	g.h.layer("base", "", []byte("base"))
	g.write("kept", "base")
	filler := g.h.prepare("filler", "base", nil)
	writeBlocks(t, filler[0].Source, g.block, g.count)
}

// firstBlock is where writeBlocks begins, in blocks. What is before is the file
// system's, which the doctor looks at.
const firstBlock = 64

var page = bytes.Repeat([]byte("page"), 1024)

// writeBlocks writes a page of each of so many blocks of a volume, and syncs them.
func writeBlocks(t *testing.T, device string, block, count int) {
	t.Helper()
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	require.NoError(t, err)
	defer f.Close()
	for i := range count {
		_, err := f.WriteAt(page, int64(firstBlock+i)*int64(block))
		require.NoError(t, err)
		if i%4096 == 0 {
			require.NoError(t, f.Sync())
		}
	}
	require.NoError(t, f.Sync())
}

// requireContents checks some of what writeBlocks has written, and the other
// snapshot, into which it writes.
func (g *growingPool) requireContents(t *testing.T) {
	t.Helper()
	g.requireKept(t)
	mounts, err := g.h.Mounts(t.Context(), "filler")
	require.NoError(t, err)
	f, err := os.Open(mounts[0].Source)
	require.NoError(t, err)
	defer f.Close()
	b := make([]byte, len(page))
	for i := 0; i < g.count; i += 97 {
		_, err := f.ReadAt(b, int64(firstBlock+i)*int64(g.block))
		require.NoError(t, err)
		require.Equal(t, page, b, i)
	}
}

// requireKept checks the snapshot "kept", and writes into it.
func (g *growingPool) requireKept(t *testing.T) {
	t.Helper()
	mounts, err := g.h.Mounts(t.Context(), "kept")
	require.NoError(t, err)
	within(t, mounts, func(dir string) {
		for _, name := range []string{"base", "kept"} {
			got, err := os.ReadFile(filepath.Join(dir, name))
			require.NoError(t, err)
			require.Equal(t, name, string(got))
		}
		require.NoError(t, os.WriteFile(filepath.Join(dir, "more"), page, 0o600))
	})
}

// size returns how large the running pool is, in bytes.
func (g *growingPool) size() (uint64, error) {
	k, err := readStore(g.dir, g.root())
	if err != nil {
		return 0, err
	}
	for _, v := range kernelDevices(ourDevices + k.uuid[:8] + "-") {
		if v.name != "pool" {
			continue
		}
		text, err := os.ReadFile(filepath.Join("/sys/block", v.kernel, "size"))
		if err != nil {
			return 0, err
		}
		sectors, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
		return sectors * 512, err
	}
	return 0, errors.New("no pool runs")
}

// await waits until the pool is larger than it was, and returns how large.
func (g *growingPool) await(t *testing.T, before uint64) (now uint64) {
	t.Helper()
	require.NoError(t, poll(reachTimeout, func() (err error) {
		if now, err = g.size(); err == nil && now <= before {
			err = fmt.Errorf("the pool has %d bytes", now)
		}
		return err
	}))
	return now
}

// grow kills the daemon at each point of a growth. Started again it makes up for
// the growth.
func (g *growingPool) grow(t *testing.T, name string, matter ...string) {
	t.Helper()
	g.fillUp(t)
	size := g.await(t, 0)
	g.kill()
	g.raise(1)
	g.start()
	size = g.await(t, size)
	require.NoError(t, g.started()) // what the growth is followed by
	points := g.crashPoints(slices.DeleteFunc(g.passed(), func(name string) bool {
		return !slices.ContainsFunc(matter, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
	}))
	require.NotEmpty(t, points, name)
	for i, p := range points {
		g.kill()
		g.raise(2 + i)
		require.NoError(t, g.dieStarting(p.String()), name)
		_, err := readStore(g.dir, g.root())
		require.NoError(t, err)
		g.start()
		size = g.await(t, size)
		g.requireContents(t)
		if t.Failed() {
			t.Fatalf("%s, %s", name, p)
		}
	}
	g.remove("base", "kept")
	g.stop()
	g.examine(t)
	t.Logf("%s: killed at %v", name, points)
}

// examine has the doctor look at the root of a daemon that does not run.
func (g *growingPool) examine(t *testing.T) {
	t.Helper()
	c := g.backend.config(g.root())
	if len(g.disks) > 0 {
		c = onDisks(g.root(), g.disks...)
	} else {
		checkPool(t, g.root())
	}
	require.NoError(t, lamina.Examine(background, c, func(f doctor.Finding) {
		if !f.Note {
			t.Errorf("the doctor: %s", f)
		}
	}))
}

// onFiles is a pool on files: its metadata are as small as can be, so that they
// have to grow with the data.
func (m matrix) onFiles() *growingPool {
	const data, step = 2816, 8 // MiB
	g := &growingPool{matrix: matrix{m.rig}, block: 64 << 10, count: data*16 - 3200}
	g.toml = func(n int) string {
		return "\n[snapshotters.lamina]\nbackend = \"thin\"\n[thin]\nzeroing = \"off\"\nvolume_size = \"4GiB\"\nreserve = \"16MiB\"\n" +
			fmt.Sprintf("metadata_size = \"2MiB\"\ndata_size = \"%dMiB\"\nmax_size = \"%dMiB\"\n", data, data+n*step)
	}
	g.raise = func(n int) { require.NoError(m.t, g.configure(g.toml(n))) }
	return g
}

// onDisk is a pool on a disk that becomes longer.
func (m matrix) onDisk(t *testing.T) *growingPool {
	t.Helper()
	const size, step = 512 << 20, 4 << 20
	dir := mustTempDir(t)
	disk := mustDisk(t, dir, "disk", size)
	g := &growingPool{matrix: matrix{m.rig}, block: 1 << 20, count: 430, disks: []string{disk}, admin: filepath.Join(dir, "admin")}
	g.toml = func(int) string {
		return fmt.Sprintf("\n[snapshotters.lamina]\nbackend = \"thin\"\n[thin]\npool = \"device\"\ndevices = [\"%s\"]\n", strings.Join(g.disks, `", "`)) +
			"block_size = \"1MiB\"\nzeroing = \"off\"\nvolume_size = \"1GiB\"\nreserve = \"8MiB\"\nmetadata_size = \"4MiB\"\n" +
			fmt.Sprintf("[admin]\naddress = %q\n", g.admin)
	}
	g.raise = func(n int) {
		require.NoError(t, os.Truncate(filepath.Join(dir, "disk"), size+int64(n)*step))
		_, err := command(background, nil, "losetup", "--set-capacity", disk)
		require.NoError(t, err)
	}
	return g
}
