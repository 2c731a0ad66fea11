package integration

import (
	"context"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/integration/guest"
	"github.com/lamina-snapshotter/lamina/metadata"
	"github.com/lamina-snapshotter/lamina/overlayaufs"
)

// TestQuotaFailpoints kills the daemon in the steps in which a project gets, changes or loses its limits. In the end the projects
// that something is in, or that have limits, are those of the store.
func TestQuotaFailpoints(t *testing.T) {
	guest.Require(t)
	began, mnt := time.Now(), quotaDisks[0].mustMountDisk(t)
	m := matrix{newRig(t, union, union.toml())}
	m.place(newDaemon(t, mnt, union, union.toml()+"\n[union]\n  quota = \"on\"\n  max_size = \"64MiB\"\n"))
	m.start()
	m.h.layer("base", "", []byte("base"))
	resize := crashStep{
		name: "resize", before: func(m matrix) { m.write("new", "base") }, finish: func(matrix) {},
		run: func(ctx context.Context) error {
			_, err := m.h.Update(ctx, snapshots.Info{Name: "new", Labels: limits(32<<20, 100)})
			return err
		},
		refused: func(error) bool { return false }, shows: map[string][]string{"new": {"base", "new"}},
	}
	steps := append(slices.DeleteFunc(m.steps(), func(s crashStep) bool {
		return !slices.Contains([]string{"prepare on a layer", "commit", "remove an active snapshot"}, s.name)
	}), resize)
	require.Len(t, steps, 4)
	for _, s := range steps {
		m.step(t, s)
	}
	m.stop()
	for _, name := range []string{"union.project-joined", "union.project-bounded", "update.resized"} {
		require.NotZero(t, m.died[name], name)
	}
	m.report(t, began)
	requireProjects(t, m.root())
}

// requireProjects holds what the file system has of projects to what the store of a daemon that has stopped says.
func requireProjects(t *testing.T, root string) {
	t.Helper()
	store, err := metadata.Open(filepath.Join(root, "lamina.db"), metadata.Options{ReadOnly: true})
	require.NoError(t, err)
	defer store.Close()
	links, err := store.Contents(metadata.Directory)
	require.NoError(t, err)
	recorded := map[uint32]bool{}
	for _, link := range links {
		require.NotZero(t, link.Placement.Project)
		recorded[link.Placement.Project] = true
	}
	b, err := overlayaufs.Open(t.Context(), overlayaufs.Config{Root: filepath.Join(root, "union")})
	require.NoError(t, err)
	defer b.Close()
	first, _ := b.Projects()
	for project := first; project < first+1000; project++ {
		taken, err := b.ProjectTaken(project)
		require.NoError(t, err)
		require.Equal(t, recorded[project], taken, "project %d", project)
	}
}
