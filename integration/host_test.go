package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina"
)

// A host is a Lamina in this process, or a client of one that is a daemon, and
// what tests do with its snapshotter over and over.
type host struct {
	snapshots.Snapshotter
	t *testing.T
}

// openHost opens a Lamina in this process. Its end, which the test may bring
// about before its own, checks the pool.
func openHost(t *testing.T, b backend, root string) (h *host, stop func()) {
	t.Helper()
	opened, err := lamina.Open(t.Context(), b.config(root))
	require.NoError(t, err)
	sn, err := opened.Snapshotter(lamina.DefaultName)
	require.NoError(t, err)
	stopped := false
	stop = func() {
		t.Helper()
		if !stopped {
			stopped = true
			require.NoError(t, errors.Join(sn.Close(), opened.Close()))
			b.check(t, root)
		}
	}
	t.Cleanup(stop)
	return &host{sn, t}, stop
}

// client returns a client of one of the daemon's snapshotters.
func (d *daemon) client(name string) *host {
	d.t.Helper()
	sn, closeIt, err := d.connect(name)
	require.NoError(d.t, err)
	d.t.Cleanup(func() { require.NoError(d.t, closeIt()) })
	return &host{sn, d.t}
}

func (h *host) prepare(key, parent string, labels map[string]string) []mount.Mount {
	h.t.Helper()
	mounts, err := h.Prepare(h.t.Context(), key, parent, snapshots.WithLabels(labels))
	require.NoError(h.t, err)
	return mounts
}

// layer makes a committed layer of one file.
func (h *host) layer(name, parent string, content []byte) {
	h.t.Helper()
	key := name + "-active"
	within(h.t, h.prepare(key, parent, nil), func(dir string) {
		require.NoError(h.t, os.WriteFile(filepath.Join(dir, name), content, 0o644))
	})
	require.NoError(h.t, h.Commit(h.t.Context(), name, key))
}

// requireFile checks a file in an active snapshot.
func (h *host) requireFile(key, name, content string) {
	h.t.Helper()
	mounts, err := h.Mounts(h.t.Context(), key)
	require.NoError(h.t, err)
	within(h.t, mounts, func(dir string) {
		got, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(h.t, err)
		require.Equal(h.t, content, string(got))
	})
}

// remove removes snapshots, and waits until nothing of them is left.
func (h *host) remove(keys ...string) {
	h.t.Helper()
	for _, key := range keys {
		require.NoError(h.t, h.Remove(h.t.Context(), key))
	}
	require.NoError(h.t, h.Snapshotter.(snapshots.Cleaner).Cleanup(h.t.Context()))
}

// within calls f with the directory where a snapshot is mounted meanwhile.
func within(t *testing.T, mounts []mount.Mount, f func(dir string)) {
	t.Helper()
	require.NoError(t, mount.WithTempMount(t.Context(), mounts, func(dir string) error {
		f(dir)
		return nil
	}))
}

// TestPartOfActiveDirectory has a power cut leave a part of what an active
// snapshot was made of: the start makes the rest.
func TestPartOfActiveDirectory(t *testing.T) {
	requireRoot(t)
	root := filepath.Join(mustTempDir(t), "root")
	h, stop := openHost(t, union, root)
	h.layer("base", "", []byte("base"))
	h.prepare("active", "base", nil)
	fs, err := filepath.Glob(filepath.Join(root, "union", "*", "fs"))
	require.NoError(t, err)
	require.Len(t, fs, 2)
	stop()
	require.NoError(t, os.Remove(fs[1]))
	h, _ = openHost(t, union, root)
	_, err = h.Usage(t.Context(), "active")
	require.NoError(t, err)
	require.NoError(t, h.Commit(t.Context(), "committed", "active"))
	_, err = h.View(t.Context(), "view", "committed")
	require.NoError(t, err)
}

// compare checks that a snapshot shows these files and no others.
func compare(ctx context.Context, mounts []mount.Mount, files map[string]string) error {
	return mount.WithTempMount(ctx, mounts, func(dir string) error {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		if len(entries) != len(files) {
			return fmt.Errorf("it has the files %v, want %v", entries, files)
		}
		for name, want := range files {
			if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
				return errors.Join(fmt.Errorf("the file %s is %q, want %q", name, got, want), err)
			}
		}
		return nil
	})
}
