package integration

import (
	"context"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/integration/guest"
	"github.com/lamina-snapshotter/lamina/integration/image"
)

// TestThinPowerCutContainerd cuts the power of Lamina's disk under a containerd
// whose own disk is another: it imports an image, runs containers, commits one
// and removes some.
func TestThinPowerCutContainerd(t *testing.T) {
	guest.Require(t)
	backends := []backend{thinExt4, union, thinXFS}
	for _, b := range backends[:tortured(1, len(backends))] {
		t.Run(b.name+b.thin.FS, func(t *testing.T) {
			rng := mustSeed(t)
			fstype := "ext4"
			if b.name == lamina.BackendUnion {
				fstype = "xfs"
			}
			d := recordDisk(t, fstype)
			config := d.config(b)
			histories := []history{d.recordContainerd(t, config, b)}
			d.cutOften(t, config, histories, rng, tortured(6, 30))
		})
	}
}

// recordContainerd records a containerd with a Lamina on the disk.
func (d *recordedDisk) recordContainerd(t *testing.T, config lamina.Config, b backend) history {
	t.Helper()
	start := time.Now()
	n := &node{t: t, dir: mustTempDir(t), snapshotter: lamina.DefaultName}
	b.thin = config.Thin
	n.daemon = startDaemonOn(t, filepath.Join(n.dir, "lamina"), config.Root, b, b.toml())
	n.startBeside(containerd2)
	client := n.daemon.client(lamina.DefaultName)
	h := history{states: []state{{}}, marks: []string{""}}
	acknowledged := func() {
		t.Helper()
		s, mark := d.markedState(client)
		h.states, h.marks = append(h.states, s), append(h.marks, mark)
	}
	n.importImage(n.snapshotter, "small.tar")
	acknowledged()
	list := n.ctr("snapshots", "ls")
	for _, id := range []string{"one", "two"} {
		n.ctr("run", "--detach", image.SmallName, id, "sh", "-c", "echo "+id+" >/id; sleep 600")
		acknowledged()
	}
	n.ctr("snapshots", "prepare", "builder", topOf(parentsIn(list)))
	acknowledged()
	n.ctr("snapshots", "commit", "built", "builder")
	acknowledged()
	n.removeContainer("one")
	acknowledged()
	require.NoError(t, n.runOnce("three"))
	acknowledged()
	n.removeContainer("two")
	acknowledged()

	n.containerd.stop() // it would remove what it does not know
	client.readTrees(h)
	n.daemon.stop()
	d.stop()
	t.Logf("recorded for %v", time.Since(start).Round(time.Millisecond))
	return h
}

// markedState marks what a client sees. containerd removes in the background, so
// it may be something else a moment later: then that is marked.
func (d *recordedDisk) markedState(client *host) (s state, mark string) {
	d.t.Helper()
	for range 100 {
		s, mark = client.state(), d.mark()
		if reflect.DeepEqual(s, client.state()) {
			return s, mark
		}
	}
	d.t.Fatal("the snapshots change all the time")
	return nil, ""
}

// state returns what a client sees now, but no trees.
func (h *host) state() state {
	h.t.Helper()
	s := state{}
	require.NoError(h.t, h.Walk(h.t.Context(), func(_ context.Context, info snapshots.Info) error {
		if !strings.HasPrefix(info.Name, lookPrefix) {
			s[info.Name] = held{kind: info.Kind, parent: info.Parent}
		}
		return nil
	}))
	return s
}

// readTrees reads the trees of the committed snapshots in a history that are
// still there.
func (h *host) readTrees(of history) {
	h.t.Helper()
	trees := map[string]map[string]file{}
	for key, snapshot := range h.state() {
		if snapshot.kind == snapshots.KindCommitted {
			tree, err := lookAt(h.t.Context(), h.Snapshotter, key)
			require.NoError(h.t, err)
			trees[key] = tree
		}
	}
	require.NotEmpty(h.t, trees)
	for _, s := range of.states {
		for key, snapshot := range s {
			snapshot.tree = trees[key]
			s[key] = snapshot
		}
	}
}
