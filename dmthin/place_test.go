package dmthin

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
	"github.com/lamina-snapshotter/lamina/integration/guest"
)

const storeUUID = "5f2c8a1e-0000-4000-8000-00000000c0de"

// mustControl returns an open device mapper, and sees at the end that the test left no dm device and no loop device.
func mustControl(t *testing.T) *dm.Control {
	t.Helper()
	guest.Require(t)
	control, err := dm.Open()
	require.NoError(t, err)
	dir := filepath.Dir(t.TempDir())
	t.Cleanup(func() {
		require.Empty(t, mustDevices(t, control), "dm devices are left")
		mustLoops(t, dir, 0)
		require.NoError(t, control.Close())
	})
	return control
}

// mustDevices returns the names of our dm devices.
func mustDevices(t *testing.T, control *dm.Control) (names []string) {
	t.Helper()
	devices, err := control.List()
	require.NoError(t, err)
	for _, d := range devices {
		if strings.HasPrefix(d.Name, testPrefix()) {
			names = append(names, d.Name)
		}
	}
	return names
}

// mustLoops wants so many loop devices with files below a directory. One that is detached while udevd looks into it goes
// a little later.
func mustLoops(tb testing.TB, dir string, want int) {
	tb.Helper()
	require.Eventually(tb, func() bool {
		files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
		require.NoError(tb, err)
		n := 0
		for _, f := range files {
			if file, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(file), dir+"/") {
				n++
			}
		}
		return n == want
	}, 10*time.Second, 20*time.Millisecond, "not %d loop devices with files in %s", want, dir)
}

// mustOwner wants a place to belong to a store; "" is a new place.
func mustOwner(t *testing.T, p place, want string) {
	t.Helper()
	uuid, err := p.owner(t.Context())
	require.NoError(t, err)
	require.Equal(t, want, uuid)
}

// mustRefuse wants owner to refuse a place with a sentence that says all this.
func mustRefuse(t *testing.T, p place, says ...string) {
	t.Helper()
	_, err := p.owner(t.Context())
	for _, s := range says {
		require.ErrorContains(t, err, s)
	}
	require.Error(t, err)
}

func mustMake(t *testing.T, p place) {
	t.Helper()
	mustOwner(t, p, "")
	require.NoError(t, p.make(t.Context(), storeUUID))
	mustOwner(t, p, storeUUID)
}

// mustAttach attaches a place and takes that away at the end of the test.
func mustAttach(t *testing.T, p place) poolDevices {
	t.Helper()
	d, err := p.attach(t.Context(), testPrefix())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.detach(t.Context())) })
	return d
}

func testPrefix() string { return fmt.Sprintf("lamina-test%d", os.Getpid()) }

// mustPool runs a pool on a place, does f with it, and stops it.
func mustPool(t *testing.T, control *dm.Control, d poolDevices, f func(p *Pool)) {
	t.Helper()
	p, err := startPool(t.Context(), control, poolSettings{
		prefix: testPrefix(), uuid: testUUID, metadataPath: d.metadataPath, zeroing: true, metadata: d.metadata, data: d.data, size: d.size, block: testBlock, discard: true,
	})
	require.NoError(t, err)
	f(p)
	stopped, err := p.Stop(t.Context())
	require.NoError(t, err)
	require.True(t, stopped)
}

// testPlaceLife has a pool in a place that is new, and finds it again: while it runs, and as after a boot of the machine.
func testPlaceLife(t *testing.T, control *dm.Control, open func() place) {
	t.Helper()
	p := open()
	mustMake(t, p)
	require.NoError(t, p.make(t.Context(), storeUUID), "twice")
	require.ErrorContains(t, p.make(t.Context(), "another"), storeUUID)
	require.NoError(t, p.detach(t.Context()), "what is not attached")
	devices, err := p.attach(t.Context(), testPrefix())
	require.NoError(t, err)
	_, err = os.Stat(devices.metadataPath)
	require.NoError(t, err)
	mustPool(t, control, devices, func(pool *Pool) {
		require.NoError(t, pool.Claim(t.Context(), 7))
		again, err := p.attach(t.Context(), testPrefix())
		require.NoError(t, err)
		require.Equal(t, devices, again)

		// As after a kill: the pool runs, and the next process finds it.
		require.NoError(t, p.close())
		p = open()
		mustOwner(t, p, storeUUID)
		again, err = p.attach(t.Context(), testPrefix())
		require.NoError(t, err)
		require.Equal(t, devices, again)
		require.NoError(t, pool.Create(t.Context(), 1))
	})
	wantTransaction(t, p, 7)
	require.NoError(t, p.detach(t.Context()))
	require.NoError(t, p.detach(t.Context()), "twice")
	wantTransaction(t, p, 7)
	require.NoError(t, p.close())
	require.NoError(t, p.close(), "twice")

	p = open()
	mustOwner(t, p, storeUUID)
	devices = mustAttach(t, p)
	mustPool(t, control, devices, func(pool *Pool) {
		require.ErrorIs(t, pool.control.CreateThin(pool.name, 1), os.ErrExist)
		require.NoError(t, pool.Claim(t.Context(), 8))
	})
	wantTransaction(t, p, 8)
}

// wantTransaction reads the superblock of a place whose pool does not run.
func wantTransaction(t *testing.T, p place, want uint64) {
	t.Helper()
	r, err := p.metadata()
	require.NoError(t, err)
	super, err := readSuperblock(r)
	require.NoError(t, err)
	require.NoError(t, r.Close())
	require.Equal(t, want, super.Transaction)
	require.EqualValues(t, testBlock, super.BlockSize)
}
