package dmthin

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
)

// testDisks are loop devices that serve as the disks of a user.
type testDisks struct {
	t       *testing.T
	control *dm.Control
	files   []string
	loops   []loop
}

func newDisks(t *testing.T, sizes ...int64) *testDisks {
	t.Helper()
	disks := &testDisks{t: t, control: mustControl(t)}
	dir := t.TempDir()
	for i, size := range sizes {
		file := filepath.Join(dir, string(rune('a'+i)))
		require.NoError(t, os.WriteFile(file, nil, 0o600))
		require.NoError(t, os.Truncate(file, size))
		l, err := attachLoop(t.Context(), file)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, l.detach()) })
		disks.files, disks.loops = append(disks.files, file), append(disks.loops, l)
	}
	return disks
}

// place returns a place on some of the disks, in that order.
func (d *testDisks) place(which ...int) *devicePlace {
	p := &devicePlace{control: d.control, blockSize: testBlock}
	for _, i := range which {
		p.paths = append(p.paths, d.loops[i].path)
	}
	d.t.Cleanup(func() { require.NoError(d.t, p.close()) })
	return p
}

// made makes a place on disks, for a store, and closes it.
func (d *testDisks) made(which ...int) {
	d.t.Helper()
	p := d.place(which...)
	mustMake(d.t, p)
	require.NoError(d.t, p.close())
}

// write writes to a disk as another program would, read reads from it.
func (d *testDisks) write(disk int, at int64, b []byte) {
	d.t.Helper()
	f, err := os.OpenFile(d.loops[disk].path, os.O_WRONLY, 0)
	require.NoError(d.t, err)
	_, err = f.WriteAt(b, at)
	require.NoError(d.t, err)
	require.NoError(d.t, f.Sync())
	require.NoError(d.t, f.Close())
}

func (d *testDisks) read(disk int, at int64, n int) []byte {
	d.t.Helper()
	f, err := openDirect(d.loops[disk].path, 0)
	require.NoError(d.t, err)
	b := make([]byte, n)
	_, err = f.ReadAt(b, at)
	require.NoError(d.t, err)
	require.NoError(d.t, f.Close())
	return b
}
