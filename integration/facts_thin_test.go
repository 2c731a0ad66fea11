package integration

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/admin"
	"github.com/lamina-snapshotter/lamina/dmthin"
	"github.com/lamina-snapshotter/lamina/integration/guest"
)

// A thinRoot is a Lamina in this process, on a pool of its own, as an operator
// sees it.
type thinRoot struct {
	*lamina.Host
	*host
	config lamina.Config
}

func openThinRoot(t *testing.T, c lamina.Config) thinRoot {
	t.Helper()
	h, err := lamina.Open(t.Context(), c)
	require.NoError(t, err)
	sn, err := h.Snapshotter(lamina.DefaultName)
	require.NoError(t, err)
	t.Cleanup(func() { _ = h.Close() })
	return thinRoot{h, &host{sn, t}, c}
}

// write writes noise into a file of an active snapshot.
func (r thinRoot) write(key, parent string, size int) {
	r.t.Helper()
	noise := make([]byte, size)
	_, _ = rand.Read(noise)
	within(r.t, r.prepare(key, parent, nil), func(dir string) {
		require.NoError(r.t, os.WriteFile(filepath.Join(dir, key), noise, 0o600))
	})
}

func (r thinRoot) noise(key, parent string, size int) {
	r.t.Helper()
	r.write(key+"-active", parent, size)
	require.NoError(r.t, r.Commit(r.t.Context(), key, key+"-active"))
}

func poolOf(t *testing.T, s admin.Source) admin.Pool {
	t.Helper()
	status, err := s.Status(t.Context())
	require.NoError(t, err)
	require.Len(t, status.Backends, 1)
	require.Empty(t, status.Backends[0].Problem)
	require.NotNil(t, status.Backends[0].Pool)
	return *status.Backends[0].Pool
}

func spacesOf(t *testing.T, s admin.Source) map[string]admin.Space {
	t.Helper()
	found := map[string]admin.Space{}
	told := 0
	require.NoError(t, s.Space(t.Context(), func(done, total int) {
		told++
		require.LessOrEqual(t, done, total)
	}, func(sp admin.Space) error {
		found[sp.Key] = sp
		return nil
	}))
	require.Positive(t, told)
	return found
}

// TestThinFacts asks for everything that an operator may of a pool, and holds
// it to what then happens.
func TestThinFacts(t *testing.T) {
	guest.Require(t)
	c := thinExt4.config(filepath.Join(mustTempDir(t), "root"))
	c.Thin = dmthin.Config{DataSize: 512 << 20, MaxSize: 1 << 30, VolumeSize: 256 << 20}
	r := openThinRoot(t, c)
	r.noise("base", "", 4<<20)
	r.noise("left", "base", 8<<20)
	r.noise("top", "left", 2<<20)
	r.noise("right", "base", 3<<20)
	r.write("active", "top", 1<<20)
	_, err := r.View(t.Context(), "view", "top")
	require.NoError(t, err)

	r.inspects()
	live := spacesOf(t, r)
	require.Len(t, live, 6)
	require.Zero(t, live["view"].Freed)
	r.grows()
	require.NoError(t, r.Close())
	stopped, err := lamina.OpenStopped(c)
	require.NoError(t, err)
	pool := poolOf(t, stopped)
	require.Equal(t, live, spacesOf(t, stopped), "as with the daemon")
	require.NoError(t, stopped.Close())

	r = openThinRoot(t, c)
	again := poolOf(t, r)
	require.Equal(t, pool.Data, again.Data)
	require.Equal(t, pool.BlockSize, again.BlockSize)
	require.Equal(t, pool.Volumes, again.Volumes)
	require.Equal(t, 6, again.Volumes, "five, and a template")
	r.frees(live["left"].Freed, "view", "active", "top", "left")
	require.NoError(t, r.Close())
	trimmed(t, c)
	setAside(t, c)
	checkPool(t, c.Root)
}

// inspects looks at snapshots one by one.
func (r thinRoot) inspects() {
	t := r.t
	t.Helper()
	mounts, err := r.Mounts(t.Context(), "active")
	require.NoError(t, err)
	within(t, mounts, func(dir string) {
		i, err := r.Inspect(t.Context(), lamina.DefaultName, "active")
		require.NoError(t, err)
		require.Equal(t, mounts[0].Source, i.Path)
		require.Equal(t, []mount.Mount{{Type: i.Mounts[0].Type, Source: i.Mounts[0].Source, Target: i.Mounts[0].Target, Options: i.Mounts[0].Options}}, mounts)
		require.Equal(t, []string{"top", "left", "base"}, []string{i.Chain[0].Key, i.Chain[1].Key, i.Chain[2].Key})
		require.NotEmpty(t, i.Holders)
		require.Contains(t, i.Holders[0], dir)
		require.Empty(t, i.Unknown)
	})
	i, err := r.Inspect(t.Context(), lamina.DefaultName, "base")
	require.NoError(t, err)
	require.Empty(t, i.Chain, "a template is no snapshot of theirs")
	require.Empty(t, i.Path, "nobody needs its device")
	require.ElementsMatch(t, []string{"left", "right"}, i.Children)
}

// grows makes the pool larger by hand.
func (r thinRoot) grows() {
	t := r.t
	t.Helper()
	before := poolOf(t, r)
	require.Equal(t, "rw", before.Mode)
	after, err := r.GrowPool(t.Context(), 64<<20)
	require.NoError(t, err)
	require.Equal(t, before.Data.Total+64<<20, after.Data.Total)
	require.Equal(t, *before.Headroom-64<<20, *after.Headroom)
	require.Equal(t, *before.Room, *after.Room)
	require.EqualValues(t, 1, after.Grown)
	_, err = r.GrowPool(t.Context(), 1<<40)
	require.True(t, errdefs.IsResourceExhausted(err), err)
}

// frees removes snapshots, the last of which gives back so much with the others.
func (r thinRoot) frees(want uint64, keys ...string) {
	t := r.t
	t.Helper()
	before := poolOf(t, r)
	for _, key := range keys {
		require.NoError(t, r.Remove(t.Context(), key))
	}
	require.NoError(t, r.Cleanup(t.Context()))
	after := poolOf(t, r)
	require.Equal(t, want, before.Data.Used-after.Data.Used)
	require.Greater(t, want, uint64(11<<20))
	require.Equal(t, before.Volumes-3, after.Volumes)
}

// trimmed wants a trim to give back what a deletion left in the data file that
// may not discard.
func trimmed(t *testing.T, c lamina.Config) {
	t.Helper()
	c.Thin.Discard = "off"
	r := openThinRoot(t, c)
	require.NoError(t, r.Remove(t.Context(), "right"))
	require.NoError(t, r.Cleanup(t.Context()))
	_, err := r.TrimPool(t.Context())
	require.True(t, errdefs.IsFailedPrecondition(err), err)
	require.NoError(t, r.Close())

	c.Thin.Discard = "on"
	r = openThinRoot(t, c)
	before, file := poolOf(t, r), takenUp(t, c)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = r.TrimPool(ctx)
	require.ErrorIs(t, err, context.Canceled)
	require.NoError(t, r.Cleanup(t.Context()))
	require.Equal(t, before.Volumes, poolOf(t, r).Volumes, "what it took is deleted")

	given, err := r.TrimPool(t.Context())
	require.NoError(t, err)
	require.LessOrEqual(t, given, uint64(4<<20), "the first had ended before it began")
	require.InDelta(t, 3<<20, file-takenUp(t, c), 1<<20)
	left, err := r.TrimPool(t.Context())
	require.NoError(t, err)
	require.Zero(t, left)
	after := poolOf(t, r)
	require.Equal(t, before.Data, after.Data)
	require.Equal(t, before.Volumes, after.Volumes)
	require.NoError(t, r.Close())
}

// takenUp is how much of the disk the data file of a pool has.
func takenUp(t *testing.T, c lamina.Config) uint64 {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Stat(filepath.Join(c.Root, "thin", "data"), &st))
	return uint64(st.Blocks) * 512
}

// setAside wants a daemon whose pool is to be checked, and was not started, to
// tell that, and what the pool's superblock says.
func setAside(t *testing.T, c lamina.Config) {
	t.Helper()
	f, err := os.OpenFile(poolMetadata(c.Root), os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	super := make([]byte, 4096)
	_, err = f.ReadAt(super, 0)
	require.NoError(t, err)
	checked := bytes.Clone(super)
	checked[4] |= 1 // needs_check
	binary.LittleEndian.PutUint32(checked, ^crc32.Checksum(checked[4:], crc32.MakeTable(crc32.Castagnoli))^160774)
	_, err = f.WriteAt(checked, 0)
	require.NoError(t, err)

	r := openThinRoot(t, c)
	status, err := r.Status(t.Context())
	require.NoError(t, err)
	b := status.Backends[0]
	require.Contains(t, b.Problem, "lamina doctor --repair")
	require.True(t, b.Pool.NeedsCheck)
	require.Empty(t, b.Pool.Mode)
	require.Positive(t, b.Pool.Data.Used)
	_, err = r.TrimPool(t.Context())
	require.True(t, errdefs.IsFailedPrecondition(err) || errdefs.IsUnavailable(err), err)
	require.NoError(t, r.Close())
	_, err = f.WriteAt(super, 0)
	require.NoError(t, err)
}
