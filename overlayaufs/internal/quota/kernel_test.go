package quota

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
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

// tDisk returns where a new ext4 is mounted that has these features.
func tDisk(t *testing.T, features, options string) string {
	t.Helper()
	dir := t.TempDir()
	image, mnt := filepath.Join(dir, "disk"), filepath.Join(dir, "m")
	require.NoError(t, errors.Join(os.Mkdir(mnt, 0o700), os.WriteFile(image, nil, 0o600), os.Truncate(image, 64<<20)))
	out, err := exec.Command("mkfs.ext4", "-q", "-b", "4096", "-O", features, image).CombinedOutput()
	require.NoError(t, err, string(out))
	disk := mount.Mount{Type: "ext4", Source: image, Options: []string{"loop", options}}
	require.NoError(t, disk.Mount(mnt))
	t.Cleanup(func() { require.NoError(t, mount.UnmountAll(mnt, 0)) })
	return mnt
}

// TestKernel counts and bounds a project in both ways that a kernel may be asked.
func TestKernel(t *testing.T) {
	guest.Require(t)
	dir := filepath.Join(tDisk(t, "quota,project", "prjquota"), "dir")
	require.NoError(t, os.Mkdir(dir, 0o700))
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
	for _, dir := range []string{"/dev/shm", "/proc", tDisk(t, "^quota", "rw")} {
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
