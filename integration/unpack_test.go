package integration

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/integration/image"
)

// stackedLayers is how many layers a Stacked image has.
const stackedLayers = 12

// sideBySide is how many layers containerd unpacks at once in these tests.
const sideBySide = 4

// A stack is a node that unpacks side by side, with an image to pull and the tree
// that it has where containerd's own overlayfs unpacked it one layer after the other.
type stack struct {
	*node
	image string
	want  map[string]file
	since time.Time
}

func startStack(t *testing.T, d *daemon) *stack {
	t.Helper()
	n := &node{t: t, dir: mustTempDir(t), snapshotter: "lamina", unpacks: sideBySide, daemon: d}
	n.startBeside(containerd2)
	var archive bytes.Buffer
	require.NoError(t, image.Stacked(&archive))
	s := &stack{node: n, since: time.Now().Add(-time.Second), image: startRegistry(t, archive.Bytes())}
	name := filepath.Join(n.dir, "stacked.tar")
	n.write(name, archive.String())
	// Locally ctr unpacks itself, each layer on top of those below it.
	_, err := n.tryCtrWith("overlayfs", "images", "import", "--local", name)
	require.NoError(t, err)
	s.want = s.tree("overlayfs")
	require.Greater(t, len(s.want), 500)
	n.ctr("images", "delete", "--sync", image.StackedName) // its blobs would keep the layers of the other one
	return s
}

// tree reads the tree of the image. What was made when it was unpacked is of
// another moment each time.
func (s *stack) tree(snapshotter string) map[string]file {
	s.t.Helper()
	tree := maps.Clone(s.readImageTree(snapshotter))
	now := fmt.Sprintf("%d.", s.since.Unix())
	for name, f := range tree {
		if f.mode.IsDir() && len(f.mtime) >= len(now) && f.mtime >= now {
			f.mtime = "now"
			tree[name] = f
		}
	}
	return tree
}

func (s *stack) pull() error {
	_, err := s.tryCtr("images", "pull", s.image)
	return err
}

func (s *stack) check() {
	s.t.Helper()
	for _, d := range differences(s.tree(s.snapshotter), s.want) {
		s.t.Error(d)
	}
}

// forget removes the image, with its layers.
func (s *stack) forget() {
	s.t.Helper()
	s.ctr("images", "delete", "--sync", s.image)
	require.Empty(s.t, s.rows("snapshots", "ls"))
}

// unpacked returns how many images containerd has unpacked side by side.
func (s *stack) unpacked() int {
	s.t.Helper()
	log, err := os.ReadFile(s.containerd.log)
	require.NoError(s.t, err)
	n := 0
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, "image unpacked") && strings.Contains(line, "parallel=true") {
			n++
		}
	}
	return n
}

// TestUnpackSideBySide pulls an image whose layers delete and replace what is in
// those below, and have directories that only those below describe: the tree is
// the one that comes of unpacking them in turn.
func TestUnpackSideBySide(t *testing.T) {
	requireRoot(t)
	s := startStack(t, startDaemon(t, filepath.Join(mustTempDir(t), "lamina"), union))
	for round := range 3 {
		require.NoError(t, s.pull())
		require.Equal(t, round+1, s.unpacked(), "containerd did not unpack side by side")
		s.check()
		s.forget()
	}
}

// TestUnpackKilled kills the daemon in the midst of that, at each step of a
// commit that finds its parent.
func TestUnpackKilled(t *testing.T) {
	requireRoot(t)
	r := newRig(t, union, union.toml())
	r.start()
	s := startStack(t, r.daemon)
	for _, point := range []string{
		"create.recorded:4", "union.rebased-root:2", "union.rebased-directory:4", "commit.frozen:7",
		fmt.Sprintf("commit.recorded:%d", stackedLayers),
	} {
		r.arm(point)
		require.Error(t, s.pull(), point)
		require.NoError(t, r.dies(point))
		r.start()
		require.NoError(t, poll(readyTimeout, s.pull), point) // containerd calls again after a while
		s.check()
		s.forget()
		if t.Failed() {
			t.Fatalf("killed at %s", point)
		}
	}
}

// deepLayers is how many layers overlayfs stacks below a container. Where
// containerd mounts all of them read-only, to compare a container with its image
// or, before 2.4, to look for its user, it can be one less.
const deepLayers = 500

// TestDeepImage runs a container of an image of so many layers.
func TestDeepImage(t *testing.T) {
	requireRoot(t)
	busybox, err := os.ReadFile(mustHave(t, ".cache/busybox"))
	require.NoError(t, err)
	n := &node{t: t, dir: mustTempDir(t), snapshotter: "lamina", unpacks: sideBySide}
	n.daemon = startDaemon(t, filepath.Join(n.dir, "lamina"), union)
	n.startBeside(containerd2)
	run := func(layers int) (out string, took time.Duration) {
		var archive bytes.Buffer
		require.NoError(t, image.Deep(&archive, busybox, layers))
		name := startRegistry(t, archive.Bytes())
		began := time.Now()
		n.ctr("images", "pull", name)
		t.Logf("%d layers pulled in %v", layers, time.Since(began).Round(time.Millisecond))
		began = time.Now()
		out = n.ctr("run", "--rm", name, fmt.Sprint("deep-", layers), "sh", "-c", "cat number; ls -d [0-9]*; cat /etc/passwd")
		took = time.Since(began)
		n.ctr("images", "delete", "--sync", name)
		return out, took
	}
	for _, layers := range []int{100, deepLayers} {
		out, took := run(layers)
		t.Logf("%d layers: a container took %v", layers, took.Round(time.Millisecond))
		require.Equal(t, fmt.Sprintf("%d%[1]d\nroot:x:0:0:root:/:/bin/sh\n", layers-1), out)
	}
	require.Empty(t, n.daemon.layers(), "contents, or links to them")
}
