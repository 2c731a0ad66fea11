package integration

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/doctor"
)

// A migrant is a root whose layers are migrated, with each kind of mark in them.
type migrant struct {
	*rig
	want map[string]string // what the active snapshot shows
}

func newMigrant(t *testing.T) migrant {
	t.Helper()
	m := migrant{newRig(t, union, union.toml()), nil}
	m.start()
	step := func(name, parent string, change func(dir string)) {
		within(t, m.h.prepare(name+"-active", parent, nil), change)
		require.NoError(t, m.h.Commit(t.Context(), name, name+"-active"))
	}
	write := func(path string) {
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(filepath.Base(path)), 0o644))
	}
	step("base", "", func(dir string) {
		for _, name := range []string{"file", "dir/a", "dir/b", "dir/sub/c", "replaced/old", "kept", "tree/x/y"} {
			write(filepath.Join(dir, name))
		}
	})
	step("middle", "base", func(dir string) {
		require.NoError(t, errors.Join(os.Remove(filepath.Join(dir, "file")), os.Remove(filepath.Join(dir, "dir/a")),
			os.RemoveAll(filepath.Join(dir, "replaced")), os.Chmod(filepath.Join(dir, "kept"), 0o600)))
		write(filepath.Join(dir, "replaced/new"))
		write(filepath.Join(dir, "file/over"))
	})
	within(t, m.h.prepare("container", "middle", nil), func(dir string) {
		require.NoError(t, errors.Join(os.RemoveAll(filepath.Join(dir, "dir/sub")), os.RemoveAll(filepath.Join(dir, "tree"))))
		write(filepath.Join(dir, "tree"))
	})
	m.want = m.shown()
	require.Equal(t, map[string]string{
		"dir": "", "dir/b": "b", "file": "", "file/over": "over", "kept": "kept", "replaced": "", "replaced/new": "new", "tree": "tree",
	}, m.want)
	m.stop()
	return m
}

// shown returns what the active snapshot shows: the contents of files, and
// directories.
func (m migrant) shown() map[string]string {
	m.t.Helper()
	found := map[string]string{}
	mounts, err := m.h.Mounts(m.t.Context(), "container")
	require.NoError(m.t, err)
	within(m.t, mounts, func(dir string) {
		require.NoError(m.t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || path == dir {
				return err
			}
			var content []byte
			if !d.IsDir() {
				content, err = os.ReadFile(path)
			}
			found[strings.TrimPrefix(path, dir+"/")] = string(content)
			return err
		}))
	})
	return found
}

// migrate runs lamina migrate on a root. A point to die at is in env, or none.
func (m migrant) migrate(root, env, from, to string, more ...string) (string, error) {
	args := []string{mustBuild(m.t, m.build), "migrate", "--config", m.config(), "--root", root, "--from", from, "--to", to}
	return command(background, []string{env, "LAMINA_FAILPOINT_LOG=" + m.hits}, append(args, more...)...)
}

// copy copies the root.
func (m migrant) copy(root string) string {
	m.t.Helper()
	to := filepath.Join(mustTempDir(m.t), "root")
	_, err := command(background, nil, "cp", "-a", root, to)
	require.NoError(m.t, err)
	return to
}

// patient is the root for the doctor.
func (m migrant) patient(root string) patient { return patient{m.t, m.dir, root} }

// layersOf lists what lies in the layers of a root, with what must stay as it is.
// Marks are made anew.
func layersOf(t *testing.T, root string) (all []string) {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(root, "union", "[0-9]*", "fs"))
	require.NoError(t, err)
	for _, dir := range dirs {
		require.NoError(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			var st unix.Stat_t
			err = errors.Join(err, unix.Lstat(path, &st))
			line := fmt.Sprintf("%s %o", strings.TrimPrefix(path, root), st.Mode)
			if st.Mode&unix.S_IFMT != unix.S_IFCHR && !strings.HasPrefix(filepath.Base(path), ".wh.") {
				attrs := make([]byte, 1024)
				n, listErr := unix.Llistxattr(path, attrs)
				err = errors.Join(err, listErr)
				line += fmt.Sprintf(" %d:%d %d.%d %q", st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec, attrs[:max(n, 0)])
			}
			all = append(all, line)
			return err
		}))
	}
	return all
}

// TestMigrateFailpoints kills lamina migrate at each of its points, both ways. In
// between no daemon starts, and the doctor says why. Run again it ends the
// migration, with what an uninterrupted one makes.
func TestMigrateFailpoints(t *testing.T) {
	requireRoot(t)
	m, began := newMigrant(t), time.Now()
	root := m.root()
	for _, way := range [][2]string{{"overlay", "aufs"}, {"aufs", "overlay"}} {
		from, to := way[0], way[1]
		m.clear()
		done := m.copy(root)
		_, err := m.migrate(done, "", from, to)
		require.NoError(t, err)
		want := layersOf(t, done)
		points := m.crashPoints(m.passed())
		require.NotEqual(t, layersOf(t, root), want)
		for _, p := range points {
			at := m.copy(root)
			m.die(at, p, from, to)
			if p.nth == 1 {
				m.requireRefused(at, from, to)
			}
			_, err = m.migrate(at, "", from, to)
			require.NoError(t, err, p)
			require.Equal(t, want, layersOf(t, at), p)
			require.NoError(t, os.RemoveAll(at))
		}
		t.Logf("from %s to %s: killed at %v", from, to, points)
		root = done
		if to == "aufs" { // as aufs leaves it
			dirs, err := filepath.Glob(filepath.Join(root, "union", "[0-9]*", "fs"))
			require.NoError(t, err)
			require.NoError(t, os.MkdirAll(filepath.Join(dirs[0], ".wh..wh.plnk", "1.2"), 0o700))
			// It means nothing at the root of a layer, neither to aufs nor to overlayfs.
			require.NoError(t, os.WriteFile(filepath.Join(dirs[0], ".wh..wh..opq"), nil, 0o400))
		}
	}
	for _, name := range pointsInCode(t) {
		if strings.HasPrefix(name, "migrate.") && m.died[name] == 0 {
			t.Errorf("the migration does not come by the point %s", name)
		}
	}
	t.Logf("%d kills, %v", m.kills, time.Since(began).Round(time.Second))

	require.NoError(t, errors.Join(os.RemoveAll(m.root()), os.Rename(root, m.root())))
	m.start()
	require.Equal(t, m.want, m.shown())
	m.patient(m.root()).requireClean()
	m.stop()
	require.Equal(t, 3, m.check())
}

// die has lamina migrate die at a point.
func (m migrant) die(root string, p crashPoint, from, to string) {
	m.t.Helper()
	_, err := m.migrate(root, "LAMINA_FAILPOINT="+p.String(), from, to)
	exit := (*exec.ExitError)(nil)
	require.ErrorAs(m.t, err, &exit, "from %s to %s does not come by %s", from, to, p)
	require.Equal(m.t, syscall.SIGKILL, exit.Sys().(syscall.WaitStatus).Signal(), "%s: %v", p, err)
	m.kills++
	m.died[p.name]++
}

// requireRefused checks that nobody uses layers that are half migrated. Before the
// first change and after the last one there is nothing to be refused.
func (m migrant) requireRefused(root, from, to string) {
	m.t.Helper()
	owner, err := os.ReadFile(filepath.Join(root, "union", "owner"))
	require.NoError(m.t, err)
	halfway := strings.Contains(string(owner), "migrating")
	found := codes(m.patient(root).findings())
	require.Equal(m.t, halfway, slices.Contains(found, doctor.PlaceUnsettled), "%v", found)
	if !halfway {
		return
	}
	advice := fmt.Sprintf("lamina migrate --from %s --to %s", from, to)
	_, err = command(background, nil, mustBuild(m.t, m.build), "serve", "--config", m.config(), "--root", root)
	require.ErrorContains(m.t, err, advice)
	_, err = m.migrate(root, "", to, from)
	require.ErrorContains(m.t, err, advice)
}

// TestMigrateCommand goes through what an operator sees.
func TestMigrateCommand(t *testing.T) {
	requireRoot(t)
	m := newMigrant(t)
	at := m.root()
	fails := func(code int, text string, from, to string, more ...string) {
		t.Helper()
		before := treeDigest(t, filepath.Join(at, "union"))
		_, err := m.migrate(at, "", from, to, more...)
		exit := (*exec.ExitError)(nil)
		require.ErrorAs(t, err, &exit)
		require.ErrorContains(t, err, text)
		require.Equal(t, code, exit.ExitCode(), err)
		require.Equal(t, before, treeDigest(t, filepath.Join(at, "union")), "it changed something")
	}
	fails(2, "the same", "aufs", "aufs")
	fails(2, `"thin"`, "thin", "overlay")
	fails(2, "--from and --to", "", "overlay")

	m.start()
	out, err := m.migrate(at, "", "overlay", "aufs")
	require.ErrorContains(t, err, "stop the daemon before a migration", out)
	mounts, err := m.h.Mounts(t.Context(), "container")
	require.NoError(t, err)
	_, err = m.h.View(t.Context(), "view", "base")
	require.NoError(t, err)
	m.stop()
	within(t, mounts, func(dir string) {
		fails(4, dir, "overlay", "aufs")
	})

	before := treeDigest(t, at)
	out, err = m.migrate(at, "", "overlay", "aufs", "--dry-run")
	require.NoError(t, err)
	require.Contains(t, out, "nothing is in the way. 3 layers: ")
	require.Contains(t, out, "2 deletions, 2 opaque directories")
	require.Equal(t, before, treeDigest(t, at), "a dry run changed something")

	out, err = m.migrate(at, "", "overlay", "aufs")
	require.NoError(t, err)
	require.Contains(t, out, "translated 3 of 3 layers")
	require.Contains(t, out, `union.driver = "aufs"`)
	out, err = m.migrate(at, "", "overlay", "aufs")
	require.NoError(t, err)
	require.Contains(t, out, "already")
	m.patient(at).requireClean()

	_, err = m.migrate(at, "", "aufs", "overlay")
	require.NoError(t, err)
	m.start()
	require.Equal(t, m.want, m.shown())
	require.NoError(t, m.h.Snapshotter.(snapshots.Cleaner).Cleanup(t.Context()))
	m.stop()

	upper := filepath.Join(m.patient(at).dirOf("container"), "fs")
	require.NoError(t, os.WriteFile(filepath.Join(upper, ".wh.of-a-user"), nil, 0o600))
	fails(1, `container): "/.wh.of-a-user"`, "overlay", "aufs")
	fails(1, `nothing was changed`, "overlay", "aufs", "--dry-run")
}
