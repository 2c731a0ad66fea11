package integration

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"
)

// lookPrefix begins the keys of what the tests look at snapshots through.
const lookPrefix = "look-"

// A held is what a client knows of a snapshot that it has been told is there.
type held struct {
	kind   snapshots.Kind
	parent string
	// tree is the whole tree of a committed snapshot, and of an active one as long
	// as nothing writes to it; nil if nobody knows.
	tree map[string]file
	// synced are the files in an active snapshot that were synced, and their content.
	synced map[string]string
}

// A state is what a client has been told, by key.
type state map[string]held

// A history is the states of one client, and the mark in the log from which on
// each holds. The first state is empty and holds from the start.
type history struct {
	states []state
	marks  []string
	// steps says that each state differs from the one before by one operation,
	// which happens as a whole or not at all.
	steps bool
}

// A recordingClient does one thing after the other with a snapshotter, each on
// keys of its own, and has each acknowledgement marked in the log.
type recordingClient struct {
	t    *testing.T
	sn   snapshots.Snapshotter
	disk *recordedDisk
	name string
	now  state
	history
}

func newRecordingClient(t *testing.T, sn snapshots.Snapshotter, disk *recordedDisk, name string) *recordingClient {
	t.Helper()
	return &recordingClient{
		t: t, sn: sn, disk: disk, name: name, now: state{},
		history: history{states: []state{{}}, marks: []string{""}, steps: true},
	}
}

// acknowledged marks that all of c.now is so.
func (c *recordingClient) acknowledged() {
	c.t.Helper()
	c.states, c.marks = append(c.states, maps.Clone(c.now)), append(c.marks, c.disk.mark())
}

// prepare prepares a snapshot. If it stays as it is, its tree is its parent's.
func (c *recordingClient) prepare(key, parent string, stays bool) []mount.Mount {
	c.t.Helper()
	mounts, err := c.sn.Prepare(c.t.Context(), key, parent)
	require.NoError(c.t, err)
	h := held{kind: snapshots.KindActive, parent: parent}
	if stays {
		h.tree = c.now[parent].tree
	}
	c.now[key] = h
	c.acknowledged()
	return mounts
}

// commit commits a snapshot, and has its tree read after that is marked: a read
// that goes to the disk must not be what brings it there.
func (c *recordingClient) commit(name, key string) {
	c.t.Helper()
	require.NoError(c.t, c.sn.Commit(c.t.Context(), name, key))
	parent := c.now[key].parent
	delete(c.now, key)
	c.now[name] = held{kind: snapshots.KindCommitted, parent: parent}
	c.acknowledged()
	tree, err := lookAt(c.t.Context(), c.sn, name)
	require.NoError(c.t, err)
	c.now[name] = held{kind: snapshots.KindCommitted, parent: parent, tree: tree}
	c.states[len(c.states)-1] = maps.Clone(c.now)
}

func (c *recordingClient) remove(key string) {
	c.t.Helper()
	require.NoError(c.t, c.sn.Remove(c.t.Context(), key))
	delete(c.now, key)
	c.acknowledged()
}

// view makes a view that stays.
func (c *recordingClient) view(key, parent string) {
	c.t.Helper()
	_, err := c.sn.View(c.t.Context(), key, parent)
	require.NoError(c.t, err)
	c.now[key] = held{kind: snapshots.KindView, parent: parent, tree: c.now[parent].tree}
	c.acknowledged()
}

// writeSynced writes a file in an active snapshot and syncs it, as a database in
// a container does.
func (c *recordingClient) writeSynced(key, name, content string) {
	c.t.Helper()
	mounts, err := c.sn.Mounts(c.t.Context(), key)
	require.NoError(c.t, err)
	within(c.t, mounts, func(dir string) {
		f, err := os.Create(filepath.Join(dir, name))
		require.NoError(c.t, err)
		_, err = f.WriteString(content)
		require.NoError(c.t, err)
		require.NoError(c.t, f.Sync())
		require.NoError(c.t, f.Close())
		// Not later: unmounting syncs all.
		h := c.now[key]
		h.synced = maps.Clone(h.synced)
		if h.synced == nil {
			h.synced = map[string]string{}
		}
		h.synced[name] = content
		c.now[key] = h
		c.acknowledged()
	})
}

// run is a client's day: it pulls the first layers of an image, starts containers,
// commits one, and removes some of it all.
func (c *recordingClient) run(image *imageLayers, layers int, rng *rand.Rand) {
	c.t.Helper()
	key := func(format string, args ...any) string { return c.name + "-" + fmt.Sprintf(format, args...) }
	top := ""
	for i := range layers {
		image.unpack(c.t, i, c.prepare(key("extract-%d", i), top, false))
		c.commit(key("layer-%d", i), key("extract-%d", i))
		top = key("layer-%d", i)
	}
	for i := range 3 {
		c.prepare(key("idle-%d", i), top, true)
	}
	c.view(key("view"), top)
	c.prepare(key("database"), top, false)
	c.writeSynced(key("database"), "first", noise(rng, 70_000))
	c.writeSynced(key("database"), "second", noise(rng, 10))

	mounts := c.prepare(key("builder"), top, false)
	within(c.t, mounts, func(dir string) {
		for i := range 20 {
			name := filepath.Join(dir, fmt.Sprintf("built-%d", i))
			require.NoError(c.t, os.WriteFile(name, []byte(noise(rng, 1+rng.IntN(40_000))), 0o644))
		}
		require.NoError(c.t, os.RemoveAll(filepath.Join(dir, "lamina/links")))
	})
	c.commit(key("built"), key("builder"))
	c.prepare(key("on-built"), key("built"), true)

	c.remove(key("idle-1"))
	c.remove(key("on-built"))
	c.remove(key("built"))
	c.prepare(key("again"), top, true)
	c.remove(key("view"))
	c.remove(key("database"))
}

// noise is a text of n bytes that no disk has by chance.
func noise(rng *rand.Rand, n int) string {
	const letters = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_"
	b := make([]byte, n)
	for i := range b {
		b[i] = letters[rng.IntN(len(letters))]
	}
	return string(b)
}

// lookAt returns the tree of a committed snapshot, as a view shows it.
func lookAt(ctx context.Context, sn snapshots.Snapshotter, name string) (tree map[string]file, err error) {
	mounts, err := sn.View(ctx, lookPrefix+name, name)
	if err != nil {
		return nil, err
	}
	if err := mount.WithTempMount(ctx, mounts, func(dir string) (err error) {
		tree, err = readTree(dir)
		return err
	}); err != nil {
		return nil, err
	}
	return tree, sn.Remove(ctx, lookPrefix+name)
}
