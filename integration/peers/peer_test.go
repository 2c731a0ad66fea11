package peers

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/snapshots/devmapper"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/dmthin"
)

// What both have alike. The sizes are devmapper's, as its documentation sets
// them up; Lamina's volumes are as large by default.
const (
	volumeSize  = "10GiB"
	dataSize    = "8G"
	metaSize    = "64M"
	blockSector = 128
)

// A peer is a snapshotter that is measured.
type peer struct {
	snapshots.Snapshotter
	name      string
	needsUdev bool
}

func openLamina(b *testing.B) *peer {
	b.Helper()
	c := lamina.DefaultConfig()
	c.Root = filepath.Join(b.TempDir(), "lamina")
	c.Snapshotters = map[string]lamina.SnapshotterConfig{lamina.DefaultName: {Backend: lamina.BackendThin}}
	var size dmthin.Size
	require.NoError(b, size.UnmarshalText([]byte(volumeSize)))
	c.Thin.VolumeSize = size
	host, err := lamina.Open(b.Context(), c)
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, host.Close()) })
	sn, err := host.Snapshotter(lamina.DefaultName)
	require.NoError(b, err)
	return &peer{Snapshotter: sn, name: "lamina"}
}

// openDevmapper opens containerd's snapshotter on a pool that is made as its
// documentation does it (docs/snapshotters/devmapper.md), with the same options
// as Lamina's.
func openDevmapper(b *testing.B) *peer {
	b.Helper()
	dir, pool := b.TempDir(), fmt.Sprintf("peer-%d", os.Getpid())
	meta, data := makeLoop(b, dir, "metadata", metaSize), makeLoop(b, dir, "data", dataSize)
	sectors := run(b, "blockdev", "--getsz", data)
	run(b, "dmsetup", "create", pool, "--table", fmt.Sprintf("0 %s thin-pool %s %s %d 0", sectors, meta, data, blockSector))
	b.Cleanup(func() {
		// Volumes first, which are named after their pool.
		for name := range strings.FieldsSeq(run(b, "dmsetup", "info", "--columns", "--noheadings", "--options", "name", "--sort", "-name")) {
			if strings.HasPrefix(name, pool) {
				run(b, "dmsetup", "remove", "--retry", name)
			}
		}
	})
	sn, err := devmapper.NewSnapshotter(b.Context(), &devmapper.Config{
		RootPath: filepath.Join(dir, "root"), PoolName: pool, BaseImageSize: volumeSize, FileSystemType: "ext4",
	})
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, sn.Close()) })
	return &peer{Snapshotter: sn, name: "devmapper", needsUdev: true}
}

// makeLoop returns a loop device over a new sparse file.
func makeLoop(b *testing.B, dir, name, size string) string {
	b.Helper()
	file := filepath.Join(dir, name)
	run(b, "truncate", "--size", size, file)
	device := run(b, "losetup", "--find", "--show", "--direct-io=on", file)
	b.Cleanup(func() { run(b, "losetup", "--detach", device) })
	return device
}

// run returns what a command prints, without the white space around.
func run(tb testing.TB, name string, args ...string) string {
	tb.Helper()
	out, err := exec.CommandContext(context.Background(), name, args...).CombinedOutput()
	require.NoError(tb, err, "%s %s: %s", name, args, out)
	return strings.TrimSpace(string(out))
}
