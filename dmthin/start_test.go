package dmthin

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
)

// A device of our names that is another's is left alone, be it told by its table or by its uuid.
func TestForeignDevicesAreRefused(t *testing.T) {
	p := newPool(t)
	ctx := t.Context()
	s := p.settings(t)
	s.metadata, s.data = s.data, s.metadata
	_, err := startPool(ctx, p.control, s)
	require.ErrorContains(t, err, "another device of that name")
	s = p.settings(t)
	s.uuid = "another"
	_, err = startPool(ctx, p.control, s)
	require.ErrorContains(t, err, `its uuid is "LAMINA-`+testUUID+`-pool", not "LAMINA-another-pool"`)
	s.uuid = ""
	_, err = startPool(ctx, p.control, s)
	require.ErrorContains(t, err, "no uuid")
	_, err = p.Status(ctx)
	require.NoError(t, err)

	for id, uuid := range map[uint32]string{1: "", 2: "LAMINA-another-2"} {
		require.NoError(t, p.Create(ctx, id))
		name := p.volumeName(id)
		foreign, err := p.control.Create(name, uuid)
		require.NoError(t, err)
		_, err = p.Activate(ctx, id, testVolume, false)
		require.ErrorContains(t, err, "another's")
		_, err = p.Deactivate(ctx, id)
		require.ErrorContains(t, err, "another's")
		require.ErrorContains(t, p.Delete(ctx, id, testVolume, true), "another's")
		require.ErrorContains(t, p.Flush(ctx, id), "another's")
		require.ErrorContains(t, p.Snapshot(ctx, 9, id), "another's")
		active, err := p.Active()
		require.NoError(t, err)
		require.Empty(t, active)
		got, err := p.control.Info(name)
		require.NoError(t, err)
		require.Equal(t, foreign, got)
		require.NoError(t, p.control.Remove(name))
		require.NoError(t, p.Delete(ctx, id, testVolume, true))
	}
}

// A volume that a process left suspended goes on when the next one starts.
func TestStartResumesVolumes(t *testing.T) {
	p := newPool(t)
	ctx := t.Context()
	for id := range uint32(3) {
		require.NoError(t, p.Create(ctx, id))
		p.write(t, id, "here")
	}
	require.NoError(t, p.control.Suspend(p.volumeName(1), 0))
	require.NoError(t, p.control.Suspend(p.volumeName(2), dm.NoFlush))
	require.NoError(t, p.control.Suspend(p.name, 0))
	require.NoError(t, p.control.Close())
	p.start(t)
	for id := range uint32(3) {
		info, err := p.volume(id)
		require.NoError(t, err)
		require.False(t, info.Suspended)
		require.Equal(t, "here", p.read(t, id))
	}
}

// A volume in use outlives the daemon, though its user opens it again meanwhile, as a container that is restarted does.
func TestStopLeavesWhatIsInUse(t *testing.T) {
	p := newPool(t)
	ctx := t.Context()
	for id := range uint32(2) {
		require.NoError(t, p.Create(ctx, id))
		p.write(t, id, "kept")
	}
	user, err := os.Open(p.Path(1))
	require.NoError(t, err)
	require.NoError(t, p.control.Suspend(p.volumeName(1), 0))
	stopped, err := p.Stop(ctx)
	require.NoError(t, err)
	require.False(t, stopped)
	require.NoError(t, user.Close())

	active, err := p.Active()
	require.NoError(t, err)
	require.Equal(t, []uint32{1}, active)
	info, err := p.volume(1)
	require.NoError(t, err)
	require.False(t, info.DeferredRemove)
	require.False(t, info.Suspended)
	user, err = os.Open(p.Path(1))
	require.NoError(t, err)
	require.NoError(t, user.Close())
	require.NoError(t, p.control.Close())
	p.start(t)
	require.Equal(t, "kept", p.read(t, 1))
}

// A running pool whose data device has grown meanwhile grows with it, and keeps what it has; its other settings change.
func TestStartGrowsThePool(t *testing.T) {
	p := newPool(t)
	ctx := t.Context()
	require.NoError(t, p.Create(ctx, 1))
	p.write(t, 1, "kept")
	tGrow(t, p.data, filepath.Join(p.dir, "data"), 2*testData)
	s := p.settings(t)
	s.zeroing = false
	require.EqualValues(t, 2*testData, s.size)
	pool, err := startPool(ctx, p.control, s)
	require.NoError(t, err)
	status, err := pool.Status(ctx)
	require.NoError(t, err)
	require.EqualValues(t, 2*testData/testBlock, status.DataTotal)
	table, err := p.control.Table(p.name)
	require.NoError(t, err)
	require.Equal(t, []dm.Target{s.target()}, table)
	require.Contains(t, table[0].Params, "skip_block_zeroing")
	require.Equal(t, "kept", p.read(t, 1))

	// One that is too large for the device is refused, and the pool runs on with what it had.
	s.size *= 2
	_, err = startPool(ctx, p.control, s)
	require.ErrorIs(t, err, unix.EINVAL)
	info, err := p.control.Info(p.name)
	require.NoError(t, err)
	require.False(t, info.Suspended)
	require.Equal(t, "kept", p.read(t, 1))
	p.write(t, 1, "more")

	s = p.settings(t)
	s.size = testData
	_, err = startPool(ctx, p.control, s)
	require.ErrorContains(t, err, "its data device has only")
	require.NoError(t, p.control.Close())
	p.start(t)
	require.Equal(t, "more", p.read(t, 1))
}

// So does one whose metadata device alone has grown.
func TestStartGrowsTheMetadata(t *testing.T) {
	p := newPool(t)
	before, err := p.Status(t.Context())
	require.NoError(t, err)
	tGrow(t, p.metadata, filepath.Join(p.dir, "metadata"), 64*mebibyte)
	require.Less(t, before.MetadataTotal*metadataBlock, uint64(64*mebibyte))
	for range 2 {
		pool, err := startPool(t.Context(), p.control, p.settings(t))
		require.NoError(t, err)
		status, err := pool.Status(t.Context())
		require.NoError(t, err)
		require.EqualValues(t, 64*mebibyte/metadataBlock, status.MetadataTotal)
	}
}

// A pool whose metadata are to be checked first is refused at each start, and taken away so that it can be checked, unless
// somebody uses it.
func TestPoolThatNeedsACheck(t *testing.T) {
	p := newPool(t)
	ctx := t.Context()
	restart := func(flags uint32) {
		stopped, err := p.Stop(ctx)
		require.NoError(t, err)
		require.True(t, stopped)
		metadata := filepath.Join(p.dir, "metadata")
		b, err := os.ReadFile(metadata)
		require.NoError(t, err)
		binary.LittleEndian.PutUint32(b[4:], flags) // THIN_METADATA_NEEDS_CHECK_FLAG
		binary.LittleEndian.PutUint32(b, checksum(b[:superblockSize], superblockSalt))
		require.NoError(t, os.WriteFile(metadata, b, 0))
	}
	refused := func() {
		t.Helper()
		_, err := startPool(ctx, p.control, p.settings(t))
		require.ErrorIs(t, err, errPoolState)
		require.True(t, errdefs.IsUnavailable(err))
		require.ErrorContains(t, err, p.name+` is in the state "ro" (needs a check: true)`)
	}
	require.NoError(t, p.Create(ctx, 1))
	restart(1)
	for range 2 {
		refused()
		_, err := p.control.Info(p.name)
		require.ErrorIs(t, err, os.ErrNotExist)
	}

	// As another program would have started it, before it was used.
	_, err := makeDevice(p.control, p.name, p.deviceUUID("pool"), false, p.settings(t).target())
	require.NoError(t, err)
	device, err := p.Activate(ctx, 1, testVolume, true)
	require.NoError(t, err)
	user, err := os.Open(device)
	require.NoError(t, err)
	tGrow(t, p.data, filepath.Join(p.dir, "data"), 2*testData)
	refused()
	_, err = p.control.Info(p.name)
	require.NoError(t, err)
	require.NoError(t, user.Close())
	refused()
	_, err = p.control.Info(p.name)
	require.ErrorIs(t, err, os.ErrNotExist)
	restart(0)
	p.Pool, err = startPool(ctx, p.control, p.settings(t))
	require.NoError(t, err)
}

// grow makes the file behind a loop device larger, and the device with it.
func tGrow(t *testing.T, l loop, file string, size int64) {
	t.Helper()
	require.NoError(t, os.Truncate(file, size))
	device, err := os.Open(l.path)
	require.NoError(t, err)
	require.NoError(t, errors.Join(unix.IoctlSetInt(int(device.Fd()), unix.LOOP_SET_CAPACITY, 0), device.Close()))
}
