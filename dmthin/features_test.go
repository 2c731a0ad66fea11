package dmthin

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/integration/guest"
	"github.com/lamina-snapshotter/lamina/internal/features"
)

// A kernel that has device mapper can do everything that volumes can, and nothing is left of the trial.
func TestFeatures(t *testing.T) {
	guest.Require(t)
	root := filepath.Join(t.TempDir(), "to/be/made")
	never := []string{"parallel unpack", "inode limit"}
	for _, f := range features.Run(t.Context(), Probes(Config{Root: root})) {
		t.Log(f)
		require.Equal(t, slices.Contains(never, f.Name), f.Err != nil, "%s: %v", f.Name, f.Err)
		require.NotErrorIs(t, f.Err, features.ErrUntried, f.Name)
	}
	require.NoDirExists(t, root)
	entries, err := os.ReadDir(filepath.Dir(filepath.Dir(filepath.Dir(root))))
	require.NoError(t, err)
	require.Empty(t, entries)

	disk := newDisks(t, 1<<20).loops[0].path
	require.NoError(t, haveDeviceDiscard(disk))
}

// What is missing is said with what would give it.
func TestFeaturesMissing(t *testing.T) {
	require.ErrorContains(t, missingProgram("mkfs.x", "xprogs", os.ErrNotExist), "apt-get install xprogs")
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.Error(t, havePunchHole(filepath.Join(file, "below")))
	require.Error(t, haveDeviceDiscard(filepath.Join(t.TempDir(), "none")))
	require.NoError(t, havePunchHole(filepath.Join(t.TempDir(), "to/be/made")))
}

func TestFeaturesAnswer(t *testing.T) {
	require.NoError(t, answer(nil))
	require.ErrorIs(t, answer(os.ErrPermission), features.ErrUntried)
	require.ErrorIs(t, answer(context.DeadlineExceeded), features.ErrUntried)
	require.NotErrorIs(t, answer(errors.ErrUnsupported), features.ErrUntried)
}

// The node of a control device is there afterwards if it was before.
func TestKeepingNode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mapper/control")
	make := func() error {
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		return os.WriteFile(path, nil, 0o600)
	}
	require.NoError(t, keepingNode(path, make))
	require.NoDirExists(t, filepath.Dir(path))
	require.NoError(t, make())
	require.NoError(t, keepingNode(path, make))
	require.FileExists(t, path)
}
