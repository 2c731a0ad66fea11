package lamina

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"
)

// tLogged returns a context whose log is written to the buffer.
func tLogged(t *testing.T) (context.Context, *bytes.Buffer) {
	t.Helper()
	out := new(bytes.Buffer)
	logger := logrus.New()
	logger.SetOutput(out)
	return log.WithLogger(t.Context(), logrus.NewEntry(logger)), out
}

// tUmask sets the umask of the process, which no test beside this one may run in.
func tUmask(t *testing.T, mask int) {
	t.Helper()
	old := syscall.Umask(mask)
	t.Cleanup(func() { syscall.Umask(old) })
}

// TestModes opens a root under umasks from end to end: what is in it is its owner's alone.
func TestModes(t *testing.T) {
	needRoot(t)
	for _, mask := range []int{0, 0o77, 0o22} {
		t.Run(fmt.Sprintf("%03o", mask), func(t *testing.T) {
			tUmask(t, mask)
			c := tConfig(t)
			h := mustOpen(t, c)
			sn, err := h.Snapshotter(DefaultName)
			require.NoError(t, err)
			_, err = sn.Prepare(t.Context(), "key", "")
			require.NoError(t, err)
			require.NoError(t, filepath.WalkDir(c.Root, func(path string, d fs.DirEntry, err error) error {
				if err != nil {
					return err
				}
				info, err := d.Info()
				if err != nil {
					return err
				}
				// Below the union directory nobody else comes.
				if inside, _ := filepath.Rel(filepath.Join(c.Root, "union"), path); !strings.HasPrefix(inside, "..") && inside != "." && d.IsDir() {
					return fs.SkipDir
				}
				if info.Mode().Perm()&withheld != 0 {
					t.Errorf("%s has the mode %v", path, info.Mode())
				}
				return nil
			}))
			info, err := os.Stat(filepath.Dir(c.Root))
			require.NoError(t, err)
			require.Zero(t, info.Mode().Perm()&0o022, "others may write to the parent")
		})
	}
}

// TestWiderModes opens a root whose modes somebody has widened: they are narrowed, and it is said.
func TestWiderModes(t *testing.T) {
	needRoot(t)
	c := tConfig(t)
	h, err := Open(t.Context(), c)
	require.NoError(t, err)
	require.NoError(t, h.Close())
	wide := []string{"", "lamina.db", "union", "union/owner"}
	for _, path := range wide {
		require.NoError(t, os.Chmod(filepath.Join(c.Root, path), 0o777))
	}
	ctx, said := tLogged(t)
	h, err = Open(ctx, c)
	require.NoError(t, err)
	require.NoError(t, h.Close())
	for _, path := range wide {
		path = filepath.Join(c.Root, path)
		info, err := os.Stat(path)
		require.NoError(t, err)
		require.Zero(t, info.Mode().Perm()&withheld, path)
		require.Contains(t, said.String(), "path="+path+"\n")
	}
}

// TestRootOfOthers opens a root that another user has prepared.
func TestRootOfOthers(t *testing.T) {
	needRoot(t)
	if os.Getuid() != 0 {
		require.NotEqual(t, "1", os.Getenv("LAMINA_TEST_ROOT"), "needs root to give files away")
		t.Skip("needs root to give files away")
	}
	const other = 1000
	for name, plant := range map[string]func(t *testing.T, root, elsewhere string){
		"the root": func(t *testing.T, root, _ string) {
			t.Helper()
			require.NoError(t, os.Chown(root, other, other))
		},
		"a link to the root": func(t *testing.T, root, elsewhere string) {
			t.Helper()
			require.NoError(t, os.Remove(root))
			require.NoError(t, os.Symlink(elsewhere, root))
			require.NoError(t, os.Lchown(root, other, other))
		},
		"a link to the layers": func(t *testing.T, root, elsewhere string) {
			t.Helper()
			require.NoError(t, os.Symlink(elsewhere, filepath.Join(root, "union")))
			require.NoError(t, os.Lchown(filepath.Join(root, "union"), other, other))
		},
		"a link that the store is made under": func(t *testing.T, root, elsewhere string) {
			t.Helper()
			require.NoError(t, os.Symlink(filepath.Join(elsewhere, "file"), filepath.Join(root, "lamina.db.new")))
			require.NoError(t, os.Lchown(filepath.Join(root, "lamina.db.new"), other, other))
		},
		"the pool": func(t *testing.T, root, _ string) {
			t.Helper()
			require.NoError(t, os.Mkdir(filepath.Join(root, "thin"), 0o700))
			require.NoError(t, os.WriteFile(filepath.Join(root, "thin", "data"), nil, 0o600))
			require.NoError(t, os.Chown(filepath.Join(root, "thin", "data"), other, other))
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, elsewhere := tConfig(t), t.TempDir()
			require.NoError(t, os.MkdirAll(c.Root, 0o700))
			require.NoError(t, os.WriteFile(filepath.Join(elsewhere, "file"), []byte("theirs"), 0o644))
			require.NoError(t, os.Chmod(elsewhere, 0o755))
			plant(t, c.Root, elsewhere)
			h, err := Open(t.Context(), c)
			if err == nil {
				t.Error("it opens", h.Close())
			} else {
				require.ErrorContains(t, err, "belongs to user 1000")
			}
			entries, err := os.ReadDir(elsewhere)
			require.NoError(t, err)
			require.Len(t, entries, 1)
			info, err := os.Stat(elsewhere)
			require.NoError(t, err)
			require.Equal(t, fs.FileMode(0o755), info.Mode().Perm())
		})
	}
}

// TestRootOnTheWay says where others may put another directory in the place of the root.
func TestRootOnTheWay(t *testing.T) {
	needRoot(t)
	c := tConfig(t)
	parent := filepath.Dir(c.Root)
	require.NoError(t, os.MkdirAll(parent, 0o700))
	require.NoError(t, os.Chmod(parent, 0o777))
	ctx, said := tLogged(t)
	h, err := Open(ctx, c)
	require.NoError(t, err)
	require.NoError(t, h.Close())
	require.Contains(t, said.String(), "directory="+parent+"\n")
	require.NoError(t, os.Chmod(parent, fs.ModeSticky|0o777))
	ctx, said = tLogged(t)
	h, err = Open(ctx, c)
	require.NoError(t, err)
	require.NoError(t, h.Close())
	require.NotContains(t, said.String(), "directory="+parent)
}
