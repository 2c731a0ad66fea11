package peers

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/integration/guest"
)

const (
	manyFiles = 100_000

	// timesAsFast is what the usage of so many files shall be, compared with containerd's overlay. The test asks as much of a
	// tenth of them, which a guest writes in a tenth of the time.
	timesAsFast = 100
	testFiles   = manyFiles / 10
)

// quotaDisks are how file systems with project quotas are made, and mounted.
var quotaDisks = map[string]struct {
	mkfs   []string
	option string
}{
	"ext4": {[]string{"mkfs.ext4", "-q", "-O", "quota,project"}, "prjquota"},
	"xfs":  {[]string{"mkfs.xfs", "-q"}, "pquota"},
}

// TestUsageOfManyFiles asks both for the usage of a container that has written many files.
func TestUsageOfManyFiles(t *testing.T) {
	guest.Require(t)
	ours, theirs := usagePeers(t, "ext4", testFiles)
	mine, want := timeUsage(t, ours, 100), timeUsage(t, theirs, 1)
	t.Logf("lamina %v, overlay %v: %.0f times", mine, want, float64(want)/float64(mine))
	require.Greater(t, want, timesAsFast*mine)
}

// BenchmarkUsage asks both for the usage of a container with few and with many files.
func BenchmarkUsage(b *testing.B) {
	guest.Require(b)
	for _, fs := range []string{"ext4", "xfs"} {
		for _, files := range []int{100, manyFiles} {
			b.Run(fmt.Sprintf("%s/%d", fs, files), func(b *testing.B) {
				ours, theirs := usagePeers(b, fs, files)
				want := timeUsage(b, theirs, 3)
				for b.Loop() {
					_, err := ours(b.Context())
					require.NoError(b, err)
				}
				mine := b.Elapsed() / time.Duration(b.N)
				b.ReportMetric(float64(want.Nanoseconds()), "overlay-ns/op")
				b.ReportMetric(float64(want)/float64(mine), "times")
			})
		}
	}
}

// A usage is the Usage of one snapshot.
type usage func(context.Context) (snapshots.Usage, error)

// timeUsage returns the median of a number of calls.
func timeUsage(tb testing.TB, u usage, calls int) time.Duration {
	tb.Helper()
	var times []time.Duration
	for range calls {
		start := time.Now()
		_, err := u(tb.Context())
		require.NoError(tb, err)
		times = append(times, time.Since(start))
	}
	slices.Sort(times)
	return times[calls/2]
}

// usagePeers returns the Usage of an active snapshot of Lamina's and of overlay's, which have the same files: what Lamina's
// has is mounted where overlay has its own. Both have seen them before, and tell the same.
func usagePeers(tb testing.TB, fs string, files int) (ours, theirs usage) {
	tb.Helper()
	ctx, root := tb.Context(), mountDisk(tb, fs)
	c := lamina.DefaultConfig()
	c.Root = filepath.Join(root, "lamina")
	c.Union.Quota = "on"
	host, err := lamina.Open(ctx, c)
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, host.Close()) })
	mine, err := host.Snapshotter(lamina.DefaultName)
	require.NoError(tb, err)
	other, err := overlay.NewSnapshotter(filepath.Join(root, "overlay"))
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, other.Close()) })

	tree := writeFiles(tb, mine, files)
	mounts, err := other.Prepare(ctx, "active", "")
	require.NoError(tb, err)
	require.Equal(tb, "bind", mounts[0].Type)
	require.NoError(tb, unix.Mount(tree, mounts[0].Source, "", unix.MS_BIND, ""))
	tb.Cleanup(func() { require.NoError(tb, mount.UnmountAll(mounts[0].Source, 0)) })

	ours = func(ctx context.Context) (snapshots.Usage, error) { return mine.Usage(ctx, "active") }
	theirs = func(ctx context.Context) (snapshots.Usage, error) { return other.Usage(ctx, "active") }
	want, err := theirs(ctx)
	require.NoError(tb, err)
	got, err := ours(ctx)
	require.NoError(tb, err)
	require.Equal(tb, want, got)
	return ours, theirs
}

// writeFiles prepares a snapshot, writes that many files into it, and returns where they are.
func writeFiles(tb testing.TB, sn snapshots.Snapshotter, files int) string {
	tb.Helper()
	mounts, err := sn.Prepare(tb.Context(), "active", "")
	require.NoError(tb, err)
	tree := mounts[0].Source
	for i := range files {
		dir := filepath.Join(tree, fmt.Sprint(i/1000))
		if i%1000 == 0 {
			require.NoError(tb, os.Mkdir(dir, 0o755))
		}
		require.NoError(tb, os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), []byte("x"), 0o600))
	}
	// Blocks are counted where a file is to be written back too; what a file takes beyond them is known afterwards.
	unix.Sync()
	return tree
}

// mountDisk returns the mount point of a new file system with project quotas.
func mountDisk(tb testing.TB, fs string) string {
	tb.Helper()
	dir := tb.TempDir()
	device := run(tb, "losetup", "--find", "--show", makeFile(tb, dir))
	tb.Cleanup(func() { run(tb, "losetup", "--detach", device) })
	run(tb, quotaDisks[fs].mkfs[0], append(quotaDisks[fs].mkfs[1:], device)...)
	mnt := filepath.Join(dir, "m")
	require.NoError(tb, os.Mkdir(mnt, 0o700))
	require.NoError(tb, unix.Mount(device, mnt, fs, 0, quotaDisks[fs].option))
	tb.Cleanup(func() { require.NoError(tb, unix.Unmount(mnt, 0)) })
	return mnt
}

func makeFile(tb testing.TB, dir string) string {
	tb.Helper()
	file := filepath.Join(dir, "disk")
	require.NoError(tb, os.WriteFile(file, nil, 0o600))
	require.NoError(tb, os.Truncate(file, 4<<30))
	return file
}
