package quota

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/integration/guest"
)

func tOpen(t *testing.T, dir string) int {
	t.Helper()
	d, err := os.Open(dir)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, d.Close()) })
	return int(d.Fd())
}

// TestKernel counts and bounds a project in both ways that a kernel may be asked. The temporary directory of the guest is on an
// ext4 file system with project quotas.
func TestKernel(t *testing.T) {
	guest.Require(t)
	dir := t.TempDir()
	fd := tOpen(t, dir)
	newer, state, err := Find(fd)
	require.NoError(t, err)
	require.Equal(t, State{Counted: true, Enforced: true}, state)
	require.Empty(t, newer.device)
	older := newer
	older.device, err = deviceOf(fd)
	require.NoError(t, err)
	require.NotEmpty(t, older.device)

	require.NoError(t, SetProject(fd, 77))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), make([]byte, 8192), 0o600))
	for i, f := range []FileSystem{newer, older} {
		state, err := f.State(fd)
		require.NoError(t, err)
		require.Equal(t, State{Counted: true, Enforced: true}, state)
		limits := Limits{Bytes: 1 << 20, Inodes: uint64(10 + i)}
		require.NoError(t, f.SetLimits(fd, 77, limits))
		count, err := f.Count(fd, 77)
		require.NoError(t, err)
		require.Equal(t, Count{Bytes: 4096 + 8192, Inodes: 2, Limits: limits}, count)
		count, err = f.Count(fd, 78)
		require.NoError(t, err)
		require.Zero(t, count)
	}
	require.NoError(t, Settle(fd, 77), "which ext4 does not know")
	project, err := Project(fd)
	require.NoError(t, err)
	require.EqualValues(t, 77, project)
	require.NoError(t, newer.SetLimits(fd, 77, Limits{}))
}

// TestNoQuotas asks file systems that have none.
func TestNoQuotas(t *testing.T) {
	guest.Require(t)
	for _, dir := range []string{"/dev/shm", "/proc", "/"} {
		fd := tOpen(t, dir)
		_, state, err := Find(fd)
		require.NoError(t, err, dir)
		require.Zero(t, state, dir)
	}
	fd := tOpen(t, "/proc")
	require.Error(t, SetProject(fd, 77))
	_, err := Project(fd)
	require.ErrorIs(t, err, unix.ENOTTY)
}
