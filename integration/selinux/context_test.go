package selinux

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/integration/guest"
)

// label is what a container's files are to have.
const label = "system_u:object_r:container_file_t:s0:c1,c2"

// loadPolicy gives the kernel a policy, for which there is no way back: so it must be a guest's.
func loadPolicy(t *testing.T) {
	t.Helper()
	guest.RequireSELinux(t)
	const dir = "/sys/fs/selinux"
	if err := unix.Mount("selinuxfs", dir, "selinuxfs", 0, ""); !errors.Is(err, unix.EBUSY) {
		require.NoError(t, err)
	}
	policy, err := os.ReadFile("testdata/policy")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "load"), policy, 0))
}

// TestContext mounts containers as containerd's client has them mounted under SELinux: with context= after all other
// options. Files have that label then, with a map of ids too, and what asks a mounted volume something still gets an answer.
func TestContext(t *testing.T) {
	loadPolicy(t)
	for _, fs := range []string{"ext4", "xfs"} {
		c := lamina.DefaultConfig()
		c.Root = filepath.Join(t.TempDir(), "root")
		c.Snapshotters = map[string]lamina.SnapshotterConfig{"union": {Backend: lamina.BackendUnion}, "thin": {Backend: lamina.BackendThin}}
		c.Thin.FS, c.Thin.DataSize, c.Thin.VolumeSize = fs, 4<<30, 1<<30
		h, err := lamina.Open(t.Context(), c)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, h.Close()) })
		for _, name := range h.Names() {
			if name == "union" && fs == "xfs" {
				continue // it has been seen
			}
			sn, err := h.Snapshotter(name)
			require.NoError(t, err)
			makeLayers(t, sn)
			t.Run(name+" "+fs, func(t *testing.T) { checkContext(t, sn, "plain", nil, "0:0") })
			t.Run(name+" "+fs+" with a map", func(t *testing.T) {
				checkContext(t, sn, "mapped", map[string]string{
					snapshots.LabelSnapshotUIDMapping: "0:100000:65536", snapshots.LabelSnapshotGIDMapping: "0:200000:65536",
				}, "100000:200000")
			})
		}
	}
}

// makeLayers makes two layers, each with a file.
func makeLayers(t *testing.T, sn snapshots.Snapshotter) {
	t.Helper()
	parent := ""
	for _, name := range []string{"base", "top"} {
		mounts, err := sn.Prepare(t.Context(), name+"-active", parent)
		require.NoError(t, err)
		require.NoError(t, mount.WithTempMount(t.Context(), mounts, func(dir string) error {
			return os.WriteFile(filepath.Join(dir, name), nil, 0o600)
		}))
		require.NoError(t, sn.Commit(t.Context(), name, name+"-active"))
		parent = name
	}
}

func checkContext(t *testing.T, sn snapshots.Snapshotter, key string, labels map[string]string, owner string) {
	t.Helper()
	ctx := t.Context()
	mounts, err := sn.Prepare(ctx, key, "top", snapshots.WithLabels(labels))
	require.NoError(t, err)
	mounts[0].Options = append(mounts[0].Options, fmt.Sprintf("context=%q", label)) // as client/container.go has it
	dir := t.TempDir()
	require.NoError(t, mount.All(mounts, dir))
	defer func() { require.NoError(t, mount.UnmountMounts(mounts, dir, 0)) }()
	for _, name := range []string{".", "base", "top"} {
		path := filepath.Join(dir, name)
		require.Equal(t, label, labelOf(t, path), name)
		var st unix.Stat_t
		require.NoError(t, unix.Stat(path, &st))
		require.Equal(t, owner, fmt.Sprintf("%d:%d", st.Uid, st.Gid), name)
	}
	_, err = sn.Usage(ctx, key)
	require.NoError(t, err)
	if mounts[0].Type != "overlay" {
		grow(t, sn, key, dir)
	}
}

// grow makes a volume larger that is mounted.
func grow(t *testing.T, sn snapshots.Snapshotter, key, dir string) {
	t.Helper()
	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(dir, &st))
	before := st.Blocks
	path := "labels." + snapshots.LabelSnapshotMaxSize
	_, err := sn.Update(t.Context(), snapshots.Info{Name: key, Labels: map[string]string{snapshots.LabelSnapshotMaxSize: fmt.Sprint(2 << 30)}}, path)
	require.NoError(t, err)
	require.NoError(t, unix.Statfs(dir, &st))
	require.Greater(t, st.Blocks, before*3/2)
}

func labelOf(t *testing.T, path string) string {
	t.Helper()
	b := make([]byte, 256)
	n, err := unix.Lgetxattr(path, "security.selinux", b)
	require.NoError(t, err)
	return strings.TrimRight(string(b[:n]), "\x00")
}
