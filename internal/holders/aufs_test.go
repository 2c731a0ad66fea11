package holders

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// The files are as aufs 6.1 shows them.
func TestBranches(t *testing.T) {
	sys := t.TempDir()
	si := filepath.Join(sys, "si_f3d2a1b0c4e5")
	require.NoError(t, os.Mkdir(si, 0o755))
	for name, text := range map[string]string{
		"br0": "/l/union/3/fs=rw\n", "br1": "/l/union/2/fs=rr+wh\n", "br10": "/l/a=b\\040c/1/fs=ro+wh\n",
		"brid0": "64\n", "xi_path": "/l/union/.xino\n",
	} {
		require.NoError(t, os.WriteFile(filepath.Join(si, name), []byte(text), 0o600))
	}
	for name, test := range map[string]struct{ options, want string }{
		"in sysfs":       {"rw,si=f3d2a1b0c4e5,xino=/l/union/.xino,dio", "[/l/union/3/fs /l/union/2/fs /l/a=b c/1/fs]"},
		"in the options": {"rw,si=77,xino=/x,br:/l/union/3/fs=rw:/l/union/2/fs=rr+wh", "[/l/union/3/fs /l/union/2/fs]"},
		"just unmounted": {"rw,si=77,xino=/x", "[]"},
	} {
		got, err := branchesOf(t.Context(), sys, test.options)
		require.NoError(t, err, name)
		d := Directory{paths: []string{"/l/union"}}
		require.Equal(t, test.want, fmt.Sprint(got), name)
		if name == "in sysfs" {
			m := Mount{FSType: "aufs", Branches: got}
			require.Equal(t, []string{"3/fs", "2/fs"}, d.Uses(&m))
			require.Equal(t, []string{"3/fs", "2/fs"}, d.UsesSurely(&m))
		}
	}
	// Where nothing tells, nothing must be taken for unused.
	_, err := branchesOf(t.Context(), filepath.Join(sys, "missing"), "rw,si=77")
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.NoError(t, os.RemoveAll(filepath.Join(si, "br0")))
	require.NoError(t, os.Mkdir(filepath.Join(si, "br0"), 0o755))
	_, err = branchesOf(t.Context(), sys, "rw,si=f3d2a1b0c4e5")
	require.Error(t, err)
}

// Each aufs is asked for its branches once, however many namespaces show it, and what cannot be told is no mount without any.
func TestFinderAsksForBranches(t *testing.T) {
	asked := 0
	f := finder{branches: map[string][]string{}, ask: func(options string) ([]string, error) {
		asked++
		if options == "si=2" {
			return nil, fs.ErrPermission
		}
		return []string{"/l/union/1/fs"}, nil
	}}
	f.wanted = func(m *Mount) bool { return len(m.Branches) == 1 }
	require.True(t, f.isWanted(&Mount{FSType: "aufs", Options: "si=1"}))
	require.True(t, f.isWanted(&Mount{FSType: "aufs", Options: "si=1"}))
	require.False(t, f.isWanted(&Mount{FSType: "overlay", Options: "si=1"}))
	require.Equal(t, 1, asked)
	require.NoError(t, f.branchErr)
	require.False(t, f.isWanted(&Mount{FSType: "aufs", Options: "si=2"}))
	require.ErrorIs(t, f.branchErr, fs.ErrPermission)
}
