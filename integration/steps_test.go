package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	"github.com/containerd/containerd/v2/core/diff"
	diffproxy "github.com/containerd/containerd/v2/core/diff/proxy"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/lamina-snapshotter/lamina"
)

// A crashStep is a step of a snapshot's life in which the daemon is killed. It
// begins with a snapshot base, of one file. A file holds its own name.
type crashStep struct {
	name    string
	on      string                      // the backend that it is another one for, or ""
	xfs     bool                        // and differs with xfs
	before  func(matrix)                // makes what the step needs
	run     func(context.Context) error // the step, with what it causes in the background
	refused func(error) bool            // the answer to a retry of what has happened
	finish  func(matrix)                // what before began is ended
	shows   map[string][]string         // the files that snapshots have then
}

// sizeLabel asks for another size than the configuration does.
var sizeLabel = map[string]string{snapshots.LabelSnapshotMaxSize: "11811160064"} // 11 GiB

func (m matrix) steps() []crashStep {
	active := func(m matrix) { m.write("new", "base") }
	steps := append(m.makeSteps(), m.commitSteps(active)...)
	steps = append(append(steps, m.rebaseStep()), m.removeSteps(active)...)
	for i := range steps {
		if steps[i].before == nil {
			steps[i].before = func(matrix) {}
		}
		if steps[i].finish == nil {
			steps[i].finish = func(matrix) {}
		}
	}
	return steps
}

// write prepares a snapshot and writes a file into it.
func (m matrix) write(key, parent string) {
	m.t.Helper()
	within(m.t, m.h.prepare(key, parent, nil), func(dir string) {
		require.NoError(m.t, os.WriteFile(filepath.Join(dir, key), []byte(key), 0o600))
	})
}

func (m matrix) makeSteps() []crashStep {
	prepare := func(parent string, labels map[string]string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := m.h.Prepare(ctx, "new", parent, snapshots.WithLabels(labels))
			return err
		}
	}
	view := func(parent string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := m.h.View(ctx, "new", parent)
			return err
		}
	}
	shown := func(m matrix) {
		_, err := m.h.View(m.t.Context(), "shown", "base")
		require.NoError(m.t, err)
	}
	exists := errdefs.IsAlreadyExists
	onBase := map[string][]string{"new": {"base"}}
	return []crashStep{
		{name: "prepare a base", on: lamina.BackendUnion, run: prepare("", map[string]string{"containerd.io/gc.x": "y"}), refused: exists, shows: map[string][]string{"new": {}}},
		{name: "prepare on a layer", on: lamina.BackendUnion, run: prepare("base", nil), refused: exists, shows: onBase},
		{name: "prepare without a spare", on: lamina.BackendUnion, before: takeSpares, run: prepare("base", nil), refused: exists, shows: onBase},
		{name: "prepare on a layer that is shown", on: lamina.BackendThin, before: shown, run: prepare("base", nil), refused: exists, shows: onBase},
		{name: "prepare a larger one", on: lamina.BackendThin, xfs: true, run: prepare("base", sizeLabel), refused: exists, shows: onBase},
		{name: "prepare a base of another size", on: lamina.BackendThin, run: prepare("", sizeLabel), refused: exists},
		{name: "view a layer", run: view("base"), refused: exists, shows: onBase},
		{name: "view nothing", on: lamina.BackendUnion, run: view(""), refused: exists},
	}
}

// takeSpares removes the directories that the daemon has made ahead.
func takeSpares(m matrix) {
	spares, err := filepath.Glob(filepath.Join(m.root(), "union", ".spare-*"))
	require.NoError(m.t, err)
	require.NotEmpty(m.t, spares)
	for _, dir := range spares {
		require.NoError(m.t, os.RemoveAll(dir))
	}
}

func (m matrix) commitSteps(active func(matrix)) []crashStep {
	commit := func(ctx context.Context) error {
		return m.h.Commit(ctx, "layer", "new", snapshots.WithLabels(map[string]string{"containerd.io/gc.x": "y"}))
	}
	refused := func(err error) bool { return errdefs.IsAlreadyExists(err) || errdefs.IsNotFound(err) }
	release := func() {}
	mounted := func(m matrix) {
		var dir string
		dir, release = m.hold(m.h.prepare("new", "base", nil))
		require.NoError(m.t, os.WriteFile(filepath.Join(dir, "new"), []byte("new"), 0o600))
	}
	shows := map[string][]string{"layer": {"base", "new"}}
	return []crashStep{
		{name: "commit", xfs: true, before: active, run: commit, refused: refused, shows: shows},
		{name: "commit what is mounted", before: mounted, run: commit, refused: refused, shows: shows, finish: func(matrix) { release() }},
		{name: "update", on: lamina.BackendUnion, before: active, run: func(ctx context.Context) error {
			_, err := m.h.Update(ctx, snapshots.Info{Name: "new", Labels: map[string]string{"a": "b"}})
			return err
		}, refused: func(error) bool { return false }, shows: map[string][]string{"new": {"base", "new"}}},
		m.resizeStep(),
		m.compareStep(),
	}
}

// compareStep compares what is mounted with what is below it, for a content store that does not answer: all that it leaves is the view.
func (m matrix) compareStep() crashStep {
	release := func() {}
	return crashStep{
		name: "compare what is mounted", on: lamina.BackendThin,
		before: func(m matrix) {
			var dir string
			dir, release = m.hold(m.h.prepare("new", "base", nil))
			require.NoError(m.t, os.WriteFile(filepath.Join(dir, "new"), []byte("new"), 0o600))
		},
		run: func(ctx context.Context) error {
			lower, err := m.h.View(ctx, "below", "base")
			if errdefs.IsAlreadyExists(err) {
				lower, err = m.h.Mounts(ctx, "below")
			}
			if err != nil {
				return err
			}
			upper, err := m.h.Mounts(ctx, "new")
			if err == nil {
				err = m.diff(ctx, lower, upper)
			}
			return err
		},
		refused: func(error) bool { return false }, finish: func(matrix) { release() },
		shows: map[string][]string{"new": {"base", "new"}},
	}
}

// diff has the daemon compare, which ends where it would write.
func (m matrix) diff(ctx context.Context, lower, upper []mount.Mount) (err error) {
	conn, err := grpc.NewClient("unix://"+m.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	_, err = diffproxy.NewDiffApplier(diffapi.NewDiffClient(conn)).(diff.Comparer).Compare(namespaces.WithNamespace(ctx, "test"), lower, upper)
	if errdefs.IsUnavailable(err) {
		return nil
	}
	return fmt.Errorf("compared without a content store: %w", err)
}

// resizeStep makes a volume larger that is mounted.
func (m matrix) resizeStep() crashStep {
	var (
		dir     string
		release func()
	)
	return crashStep{
		name: "resize what is mounted", on: lamina.BackendThin, xfs: true,
		before: func(m matrix) {
			dir, release = m.hold(m.h.prepare("new", "base", nil))
			require.NoError(m.t, os.WriteFile(filepath.Join(dir, "new"), []byte("new"), 0o600))
		},
		run: func(ctx context.Context) error {
			_, err := m.h.Update(ctx, snapshots.Info{Name: "new", Labels: sizeLabel})
			var st unix.Statfs_t
			if err == nil {
				err = unix.Statfs(dir, &st)
			}
			if size := uint64(st.Bsize) * st.Blocks; err == nil && size < 21<<29 {
				err = fmt.Errorf("the file system has %d bytes, less than 10.5 GiB", size)
			}
			return err
		},
		refused: func(error) bool { return false }, finish: func(matrix) { release() },
		shows: map[string][]string{"new": {"base", "new"}},
	}
}

// rebaseStep commits what was unpacked beside its parent, with a directory that
// only the parent describes.
func (m matrix) rebaseStep() crashStep {
	unpacked := map[string]string{snapshots.LabelSnapshotRef: "layer", "containerd.io/snapshot/parent-chain-id": "below"}
	fill := func(key, parent string, labels map[string]string, mode os.FileMode) {
		within(m.t, m.h.prepare(key, parent, labels), func(dir string) {
			require.NoError(m.t, errors.Join(os.Mkdir(filepath.Join(dir, "d"), mode), os.WriteFile(filepath.Join(dir, "d", key), nil, 0o600)))
		})
	}
	return crashStep{
		name: "commit onto a layer", on: lamina.BackendUnion,
		before: func(m matrix) {
			fill("below-active", "base", nil, 0o700)
			require.NoError(m.t, m.h.Commit(m.t.Context(), "below", "below-active"))
			fill("new", "", unpacked, 0o755)
		},
		run: func(ctx context.Context) error {
			return m.h.Commit(ctx, "layer", "new", snapshots.WithParent("below"))
		},
		refused: func(err error) bool { return errdefs.IsAlreadyExists(err) || errdefs.IsNotFound(err) },
		finish: func(m matrix) {
			mounts, err := m.h.View(m.t.Context(), "look", "layer")
			require.NoError(m.t, err)
			within(m.t, mounts, func(dir string) {
				info, err := os.Stat(filepath.Join(dir, "d"))
				require.NoError(m.t, err)
				require.Equal(m.t, os.ModeDir|0o700, info.Mode(), "the mode that the layer below has")
				for _, name := range []string{"base", "d/below-active", "d/new"} {
					require.FileExists(m.t, filepath.Join(dir, name))
				}
			})
			require.NoError(m.t, m.h.Remove(m.t.Context(), "look"))
		},
	}
}

func (m matrix) removeSteps(active func(matrix)) []crashStep {
	remove := func(key, until string) func(context.Context) error {
		return func(ctx context.Context) error {
			err := m.h.Remove(ctx, key)
			if err == nil && until != "" {
				err = m.reach(until)
			}
			return errors.Join(err, m.h.Snapshotter.(snapshots.Cleaner).Cleanup(ctx))
		}
	}
	layer := func(m matrix) {
		active(m)
		require.NoError(m.t, m.h.Commit(m.t.Context(), "layer", "new"))
	}
	view := func(m matrix) {
		_, err := m.h.View(m.t.Context(), "new", "base")
		require.NoError(m.t, err)
	}
	other := func(m matrix) { m.h.prepare("new", "", sizeLabel) }
	gone := errdefs.IsNotFound
	return []crashStep{
		{name: "remove an active snapshot", before: active, run: remove("new", ""), refused: gone},
		{name: "remove a layer", before: layer, run: remove("layer", ""), refused: gone},
		{name: "remove a view", before: view, run: remove("new", "settle.settled"), refused: gone},
		{name: "remove the last one upon a template", on: lamina.BackendThin, before: other, run: remove("new", "template.dropped"), refused: gone},
	}
}
