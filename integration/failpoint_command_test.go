package integration

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/admin"
)

// What a [matrix] does with the operator's commands, beside a daemon that does not
// run. It begins with a pool that has the snapshots base and kept.

// command runs the program that dies. A point to die at is in env, or none.
func (g *growingPool) command(env string, args ...string) error {
	_, err := command(background, []string{env, "LAMINA_FAILPOINT_LOG=" + g.hits},
		append([]string{mustBuild(g.t, g.build), args[0]}, append(args[1:], "--config", g.config())...)...)
	return err
}

// dieRunning has a command die at a point.
func (g *growingPool) dieRunning(t *testing.T, p crashPoint, args ...string) {
	t.Helper()
	err := g.command("LAMINA_FAILPOINT="+p.String(), args...)
	exit := (*exec.ExitError)(nil)
	require.ErrorAs(t, err, &exit, "%s does not come by %s", args, p)
	require.Equal(t, syscall.SIGKILL, exit.Sys().(syscall.WaitStatus).Signal(), "%s, %s: %v", args, p, err)
	g.kills++
	g.died[p.name]++
}

// pointsOf returns the points that a command comes by which begin so, if it goes
// well.
func (g *growingPool) pointsOf(t *testing.T, matter []string, args ...string) []crashPoint {
	t.Helper()
	g.clear()
	require.NoError(t, g.command("", args...))
	points := g.crashPoints(slices.DeleteFunc(g.passed(), func(name string) bool {
		return !slices.ContainsFunc(matter, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
	}))
	require.NotEmpty(t, points, args)
	return points
}

// look starts the daemon, checks what it has, and stops it. The doctor finds
// nothing.
func (g *growingPool) look(t *testing.T) (size uint64) {
	t.Helper()
	g.start()
	size = g.await(t, 0)
	g.requireKept(t)
	g.stop()
	g.examine(t)
	return size
}

// add kills `lamina pool add` at each of its points, with a device each. Run again
// it adds the device, or says that the pool has one more than is configured.
func (g *growingPool) add(t *testing.T) {
	t.Helper()
	const size = 300 << 20
	dir := mustTempDir(t)
	next := func() string { return mustDisk(t, dir, fmt.Sprint(len(g.disks)), size) }
	configure := func(disk string) {
		g.disks = append(g.disks, disk)
		require.NoError(t, g.configure(g.toml(0)))
	}
	disk := next()
	points := g.pointsOf(t, []string{"add.", "disk."}, "pool", "add", disk)
	configure(disk)
	before := g.look(t)
	for _, p := range points {
		disk := next()
		g.dieRunning(t, p, "pool", "add", disk)
		if err := g.command("", "pool", "add", disk); err != nil {
			require.ErrorContains(t, err, "is missing", "the retry of what has happened: %s", p)
		}
		configure(disk)
		now := g.look(t)
		require.Greater(t, now, before+size/2, p)
		before = now
		if t.Failed() {
			t.Fatalf("add, %s", p)
		}
	}
	t.Logf("pool add: killed at %v", points)
}

// trim kills the daemon at each point of a trim. Started again it has every block
// that it had, and none more in use, and the next trim runs.
func (g *growingPool) trim(t *testing.T) {
	t.Helper()
	g.start()
	client := admin.NewClient(g.admin, g.root())
	defer client.Close()
	trim := func(ctx context.Context) error {
		_, err := client.TrimPool(ctx)
		return err
	}
	g.clear()
	require.NoError(t, trim(t.Context()))
	points := g.crashPoints(slices.DeleteFunc(g.passed(), func(name string) bool { return !strings.HasPrefix(name, "trim.") }))
	if !torture() { // each round of a trim is like the first
		points = slices.DeleteFunc(points, func(p crashPoint) bool { return p.nth > 1 })
	}
	for _, p := range points {
		before := poolOf(t, client)
		require.NoError(t, g.dieIn(p.String(), trim), "trim")
		g.start()
		after := poolOf(t, client)
		require.Equal(t, before.Data, after.Data, p)
		require.Equal(t, before.Volumes, after.Volumes, p)
		g.requireKept(t)
	}
	require.NoError(t, trim(t.Context()))
	g.stop()
	g.examine(t)
	t.Logf("pool trim: killed at %v", points)
}

// repair kills `lamina doctor --repair` at each point of a repair of metadata that
// were damaged so. Run again it ends the repair.
func (g *growingPool) repair(t *testing.T, what string, damage func(*testing.T)) {
	t.Helper()
	args := []string{"doctor", "--repair", "--yes"}
	damage(t)
	points := g.pointsOf(t, []string{"repair."}, args...)
	g.look(t)
	for _, p := range points {
		damage(t)
		g.dieRunning(t, p, args...)
		require.NoError(t, g.command("", args...), "the retry, %s", p)
		g.look(t)
		if t.Failed() {
			t.Fatalf("repair of %s, %s", what, p)
		}
	}
	t.Logf("repair of %s: killed at %v", what, points)
}

// poolBlocks are the metadata of a stopped pool: in a file, or on a device at an
// offset.
type poolBlocks struct {
	path   string
	offset int64
}

func (m poolBlocks) read(t *testing.T, block int64) []byte {
	t.Helper()
	f, err := os.Open(m.path)
	require.NoError(t, err)
	defer f.Close()
	b := make([]byte, 4096)
	_, err = f.ReadAt(b, m.offset+block*4096)
	require.NoError(t, err)
	return b
}

func (m poolBlocks) write(t *testing.T, block int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(m.path, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt(b, m.offset+block*4096)
	require.NoError(t, errors.Join(err, f.Sync(), f.Close()))
}

// needCheck does what the kernel does when it cannot commit.
func (m poolBlocks) needCheck(t *testing.T) {
	t.Helper()
	b := m.read(t, 0)
	const needsCheck, salt = 1, 160774 // THIN_METADATA_NEEDS_CHECK_FLAG, SUPERBLOCK_CSUM_XOR
	binary.LittleEndian.PutUint32(b[4:], needsCheck)
	binary.LittleEndian.PutUint32(b, ^crc32.Checksum(b[4:], crc32.MakeTable(crc32.Castagnoli))^salt)
	m.write(t, 0, b)
}

// loseSpaceMap takes away the map of the data's blocks, which can be made again
// from the volumes, as the kernel would find it.
func (m poolBlocks) loseSpaceMap(t *testing.T) {
	t.Helper()
	const bitmapRoot = 64 + 16 // in the superblock: bitmap_root of the data's disk_sm_root
	m.write(t, int64(binary.LittleEndian.Uint64(m.read(t, 0)[bitmapRoot:])), make([]byte, 4096))
	m.needCheck(t)
}
