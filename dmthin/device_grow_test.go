package dmthin

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// config returns a configuration of a pool on some disks whose blocks are large and not zeroed.
func (d *testDisks) config(root string, which ...int) Config {
	c := Config{
		Root: root, Store: storeUUID, Pool: poolDevice, VolumeSize: 4 << 30, BlockSize: mebibyte, Zeroing: off, MetadataSize: minMetadata,
	}
	for _, i := range which {
		c.Devices = append(c.Devices, d.loops[i].path)
	}
	return c
}

func mustClaim(t *testing.T, c Config) *testBackend {
	t.Helper()
	b, err := Open(t.Context(), c)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	require.NoError(t, b.Claim(t.Context(), storeUUID, 1))
	return &testBackend{Backend: b}
}

// A pool takes the space that a device gains, while it is written, and keeps it.
func TestDevicesGrow(t *testing.T) {
	d := newDisks(t, 512*mebibyte, 512*mebibyte)
	c := d.config(t.TempDir(), 0, 1)
	b := mustClaim(t, c)
	require.NoError(t, b.pool.Create(t.Context(), 1))
	device, err := b.pool.Activate(t.Context(), 1, 4<<30, false)
	require.NoError(t, err)
	_, err = touch(t, device, mebibyte, 700)
	require.NoError(t, err)
	before := b.mustFill(t)
	require.NoError(t, os.Truncate(d.files[0], 1<<30))
	require.NoError(t, d.loops[0].resize())
	_, err = touch(t, device, mebibyte, 1400)
	require.NoError(t, err)
	after := b.mustFill(t)
	require.Greater(t, after.dataTotal(), before.dataTotal()+400*mebibyte)
	_, err = touch(t, device, mebibyte, 3000)
	require.Error(t, err)
	_, err = b.Make(t.Context(), Content{ID: 2}, []Content{{ID: 1, Size: 4 << 30}}, nil)
	require.ErrorContains(t, err, "lamina pool add")
	require.NoError(t, b.Close())

	b = mustClaim(t, c)
	require.Equal(t, after.DataTotal, b.mustFill(t).DataTotal)
	require.Positive(t, b.place.(*devicePlace).members[1].header.Layout.Generation)
}

// A device that is added is in the pool from the next start on; what a cut leaves of the adding is the pool as it was.
func TestAddDevice(t *testing.T) {
	d := newDisks(t, 512*mebibyte, 1<<30, 512*mebibyte)
	root := t.TempDir()
	one, two, three := d.config(root, 0), d.config(root, 0, 1), d.config(root, 1, 2, 0)
	b := mustClaim(t, one)
	require.NoError(t, b.pool.Create(t.Context(), 1))
	device, err := b.pool.Activate(t.Context(), 1, 4<<30, false)
	require.NoError(t, err)
	_, err = touch(t, device, mebibyte, 400)
	require.NoError(t, err)
	first := b.mustFill(t)
	require.ErrorContains(t, AddDevice(t.Context(), one, d.loops[1].path), "locked by another process")
	require.NoError(t, b.Close())

	require.ErrorContains(t, AddDevice(t.Context(), one, d.loops[0].path), "in the pool already")
	d.write(1, 0, []byte("XFSB"))
	require.ErrorContains(t, AddDevice(t.Context(), one, d.loops[1].path), "not blank")
	d.write(1, 0, make([]byte, 4096))

	// Cut before the first device says so.
	old := d.read(0, 0, 2*headerSize)
	require.NoError(t, AddDevice(t.Context(), one, d.loops[1].path))
	d.write(0, 0, old)
	b = mustClaim(t, one)
	require.Equal(t, first.DataTotal, b.mustFill(t).DataTotal)
	require.NoError(t, b.Close())
	_, err = Look(t.Context(), two)
	require.ErrorContains(t, err, "run `lamina pool add` for it again")

	require.NoError(t, AddDevice(t.Context(), one, d.loops[1].path))
	_, err = Look(t.Context(), one)
	require.ErrorContains(t, err, "device 1 of the pool is missing: "+d.loops[1].path)
	b = mustClaim(t, two)
	second := b.mustFill(t)
	require.Greater(t, second.dataTotal(), first.dataTotal()+900*mebibyte)
	require.Greater(t, second.MetadataTotal, first.MetadataTotal)
	device, err = b.pool.Activate(t.Context(), 1, 4<<30, false)
	require.NoError(t, err)
	_, err = touch(t, device, mebibyte, 1200)
	require.NoError(t, err)
	require.NoError(t, b.Close())

	// A second change of the headers that was torn leaves the first.
	require.NoError(t, AddDevice(t.Context(), two, d.loops[2].path))
	d.write(0, 2*sector, []byte("torn"))
	b = mustClaim(t, two)
	require.Equal(t, second.DataTotal, b.mustFill(t).DataTotal)
	require.NoError(t, b.Close())
	require.NoError(t, AddDevice(t.Context(), two, d.loops[2].path))
	b = mustClaim(t, three)
	require.Greater(t, b.mustFill(t).dataTotal(), second.dataTotal()+400*mebibyte)
	require.NoError(t, b.Close())
	repair, err := RepairMetadata(t.Context(), three, 1)
	require.NoError(t, err)
	require.Equal(t, Repair{Volumes: 1}, repair, "on two devices")
}
