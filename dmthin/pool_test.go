package dmthin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
	"github.com/lamina-snapshotter/lamina/integration/guest"
)

func TestMain(m *testing.M) { os.Exit(guest.Main(m, guest.Options{})) }

const (
	testVolume = 256 << 20
	testBlock  = 64 << 10
	testData   = 4 << 30
	testUUID   = "8c1b1f4e-6d6c-4f60-9d07-3b1d9e4ad0f5"
)

// testPool is a pool on sparse files, stopped and detached at the end of the test.
type testPool struct {
	*Pool
	dir            string
	control        *dm.Control
	metadata, data loop
	under          dm.DevNum // a device between the pool and data, if there is one
	underMetadata  dm.DevNum
}

func newPool(t *testing.T) *testPool {
	t.Helper()
	return newPoolOn(t, func(*testPool) {})
}

// newPoolOn is newPool that calls prepare when the loop devices are there and before the pool is.
func newPoolOn(t *testing.T, prepare func(*testPool)) *testPool {
	t.Helper()
	guest.Require(t)
	p := &testPool{dir: t.TempDir()}
	for name, size := range map[string]int64{"metadata": int64(metadataSize(testData, testBlock, 1000)), "data": testData} {
		f, err := os.Create(filepath.Join(p.dir, name))
		require.NoError(t, err)
		require.NoError(t, errors.Join(f.Truncate(size), f.Close()))
	}
	p.attach(t)
	t.Cleanup(func() {
		require.NoError(t, errors.Join(p.data.detach(), p.metadata.detach()))
		p.thinCheck(t)
	})
	prepare(p)
	p.start(t)
	t.Cleanup(func() {
		stopped, err := p.Stop(context.Background())
		require.NoError(t, err)
		require.True(t, stopped)
		require.NoError(t, p.control.Close())
	})
	return p
}

func (p *testPool) attach(t *testing.T) {
	t.Helper()
	var err error
	p.metadata, err = attachLoop(t.Context(), filepath.Join(p.dir, "metadata"))
	require.NoError(t, err)
	p.data, err = attachLoop(t.Context(), filepath.Join(p.dir, "data"))
	require.NoError(t, err)
}

func (p *testPool) start(t *testing.T) {
	t.Helper()
	p.attach(t)
	var err error
	p.control, err = dm.Open()
	require.NoError(t, err)
	p.Pool, err = startPool(t.Context(), p.control, p.settings(t))
	require.NoError(t, err)
}

func (p *testPool) settings(t *testing.T) poolSettings {
	t.Helper()
	size, err := deviceSize(p.data.path)
	require.NoError(t, err)
	s := poolSettings{
		prefix: "lamina-test" + fmt.Sprint(os.Getpid()), uuid: testUUID,
		metadata: p.metadata.dev, data: p.data.dev, metadataPath: p.metadata.path,
		size: size, block: testBlock, discard: true, zeroing: true,
	}
	if !p.under.IsZero() {
		s.data = p.under
	}
	if !p.underMetadata.IsZero() {
		s.metadata = p.underMetadata
	}
	return s
}

// thinCheck has thin_check look at the metadata of a pool that is stopped.
func (p *testPool) thinCheck(t *testing.T) {
	t.Helper()
	out, err := exec.Command("thin_check", filepath.Join(p.dir, "metadata")).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// write fills the first page of a volume.
func (p *testPool) write(t *testing.T, id uint32, text string) {
	t.Helper()
	path, err := p.Activate(t.Context(), id, testVolume, false)
	require.NoError(t, err)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt(bytes.Repeat([]byte(text), 4096/len(text)), 0)
	require.NoError(t, errors.Join(err, f.Sync(), f.Close()))
}

// read returns the first four bytes of a volume.
func (p *testPool) read(t *testing.T, id uint32) string {
	t.Helper()
	path, err := p.Activate(t.Context(), id, testVolume, true)
	require.NoError(t, err)
	f, err := os.Open(path)
	require.NoError(t, err)
	b := make([]byte, 4)
	_, err = f.ReadAt(b, 0)
	require.NoError(t, errors.Join(err, f.Close()))
	return string(b)
}

func TestVolumesAreCopies(t *testing.T) {
	p := newPool(t)
	ctx := t.Context()
	require.NoError(t, p.Create(ctx, 1))
	p.write(t, 1, "base")
	require.NoError(t, p.Flush(ctx, 1))
	require.Equal(t, "base", p.read(t, 1), "now active read-only")
	require.NoError(t, p.Snapshot(ctx, 2, 1), "of an active origin, which is resumed")
	p.write(t, 2, "copy")
	require.Equal(t, "copy", p.read(t, 2))
	require.Equal(t, "base", p.read(t, 1))

	mapped, err := p.mapped(2)
	require.NoError(t, err)
	require.EqualValues(t, testBlock, mapped)
	active, err := p.Active()
	require.NoError(t, err)
	require.ElementsMatch(t, []uint32{1, 2}, active)
	for _, id := range []uint32{2, 1} {
		require.NoError(t, p.Delete(ctx, id, testVolume, true))
		require.NoError(t, p.Delete(ctx, id, testVolume, true), "deleting twice")
	}
	require.ErrorIs(t, p.Snapshot(ctx, 4, 3), os.ErrNotExist, "of an origin that is not there")
}

// What a crash left at an id is deleted when the id is given again.
func TestLeftoverAtAFreeID(t *testing.T) {
	p := newPool(t)
	ctx := t.Context()
	require.NoError(t, p.Create(ctx, 1))
	p.write(t, 1, "left")
	require.NoError(t, p.Create(ctx, 1))
	require.Equal(t, strings.Repeat("\x00", 4), p.read(t, 1))
	require.NoError(t, p.Create(ctx, 2))
	p.write(t, 2, "left")
	require.NoError(t, p.Snapshot(ctx, 2, 1))
	require.Equal(t, strings.Repeat("\x00", 4), p.read(t, 2))
}

// A process that starts again finds its loops, its pool and its volumes, whatever the last one left.
func TestStartAgain(t *testing.T) {
	p := newPool(t)
	ctx := t.Context()
	require.NoError(t, p.Create(ctx, 1))
	p.write(t, 1, "kept")
	require.NoError(t, p.Claim(ctx, 7))
	require.NoError(t, p.Claim(ctx, 7), "twice")
	metadata, data := p.metadata, p.data

	// Killed: everything is still there, the pool suspended.
	require.NoError(t, p.control.Suspend(p.name, 0))
	require.NoError(t, p.control.Close())
	p.start(t)
	require.Equal(t, []loop{metadata, data}, []loop{p.metadata, p.data})
	require.Equal(t, "kept", p.read(t, 1))

	// Stopped, as after a boot of the machine.
	stopped, err := p.Stop(ctx)
	require.NoError(t, err)
	require.True(t, stopped)
	require.NoError(t, errors.Join(p.data.detach(), p.metadata.detach()))
	f, err := os.Open(filepath.Join(p.dir, "metadata"))
	require.NoError(t, err)
	super, err := readSuperblock(f)
	require.NoError(t, errors.Join(err, f.Close()))
	require.EqualValues(t, 7, super.Transaction)
	require.EqualValues(t, testBlock, super.BlockSize)
	require.Equal(t, space{testData / testBlock, 1}, super.data)

	// Half made: the device of the pool without a table.
	_, err = p.control.Create(p.name, p.deviceUUID("pool"))
	require.NoError(t, err)
	require.NoError(t, p.control.Close())
	p.start(t)
	require.Equal(t, "kept", p.read(t, 1))
	status, err := p.Status(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 7, status.TransactionID)
	require.True(t, status.ErrorIfNoSpace)
}

// A volume in use is not deleted and not stopped; what holds it decides when it goes.
func TestVolumeInUse(t *testing.T) {
	p := newPool(t)
	ctx := t.Context()
	require.NoError(t, p.Create(ctx, 1))
	path, err := p.Activate(ctx, 1, testVolume, false)
	require.NoError(t, err)
	user, err := os.Open(path)
	require.NoError(t, err)
	require.ErrorIs(t, p.Delete(ctx, 1, testVolume, true), unix.EBUSY)
	stopped, err := p.Stop(ctx)
	require.NoError(t, err)
	require.False(t, stopped)

	// Wanted again before it went.
	again, err := p.Activate(ctx, 1, testVolume, false)
	require.NoError(t, err)
	require.Equal(t, path, again)
	require.NoError(t, user.Close())
	p.write(t, 1, "here")
	require.Equal(t, "here", p.read(t, 1))

	pending, err := p.Deactivate(ctx, 1)
	require.NoError(t, err)
	require.False(t, pending)
	require.NoError(t, p.Delete(ctx, 1, testVolume, true))
}

// Copies of one active origin, made at once.
func TestManySnapshotsAtOnce(t *testing.T) {
	p := newPool(t)
	ctx := t.Context()
	require.NoError(t, p.Create(ctx, 1))
	p.write(t, 1, "base")
	require.Equal(t, "base", p.read(t, 1))
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			id := uint32(i + 2)
			if err := p.Snapshot(ctx, id, 1); err != nil {
				t.Error(err)
			}
			if _, err := p.Activate(ctx, id, testVolume, false); err != nil {
				t.Error(err)
			}
			if err := p.Delete(ctx, id, testVolume, false); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	active, err := p.Active()
	require.NoError(t, err)
	require.Equal(t, []uint32{1}, active)
	require.Empty(t, p.locks)
}
