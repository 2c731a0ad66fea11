package integration

import (
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina"
)

// TestUnionRunsNoProgram goes through the life of snapshots on the union backend,
// from the opening to the end, and looks at what the kernel has counted for
// children of this process: a program that ran would have taken up something.
func TestUnionRunsNoProgram(t *testing.T) {
	requireRoot(t)
	var before, after unix.Rusage
	require.NoError(t, unix.Getrusage(unix.RUSAGE_CHILDREN, &before))

	config := lamina.DefaultConfig()
	config.Root = filepath.Join(mustTempDir(t), "lamina")
	host, err := lamina.Open(t.Context(), config)
	require.NoError(t, err)
	sn, err := host.Snapshotter(lamina.DefaultName)
	require.NoError(t, err)
	ctx := t.Context()
	_, err = sn.Prepare(ctx, "active", "")
	require.NoError(t, err)
	require.NoError(t, sn.Commit(ctx, "base", "active"))
	for _, key := range []string{"a", "b"} {
		_, err = sn.Prepare(ctx, key, "base")
		require.NoError(t, err)
		_, err = sn.Mounts(ctx, key)
		require.NoError(t, err)
		_, err = sn.Usage(ctx, key)
		require.NoError(t, err)
	}
	_, err = sn.View(ctx, "view", "base")
	require.NoError(t, err)
	for _, key := range []string{"view", "a"} {
		require.NoError(t, sn.Remove(ctx, key))
	}
	require.NoError(t, sn.(snapshots.Cleaner).Cleanup(ctx))
	require.NoError(t, host.Close())

	require.NoError(t, unix.Getrusage(unix.RUSAGE_CHILDREN, &after))
	require.Equal(t, before, after)
}
