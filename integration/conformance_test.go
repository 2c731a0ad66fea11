package integration

import (
	"context"
	"errors"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	bolt "go.etcd.io/bbolt"

	"github.com/lamina-snapshotter/lamina"
)

// suiteName is that of a snapshotter as the suite knows it. "overlayfs" makes it
// leave out the one thing that no overlay does: renaming a directory of a lower
// layer without redirect_dir. Volumes are exempt from nothing.
func (b backend) suiteName() string {
	if b.name == lamina.BackendUnion {
		return "overlayfs"
	}
	return b.name
}

// inProcess opens Lamina in this process.
func inProcess(t *testing.T, b backend) testsuite.SnapshotterFunc {
	t.Helper()
	return func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		host, err := lamina.Open(ctx, b.config(filepath.Join(root, "lamina")))
		if err != nil {
			return nil, nil, err
		}
		sn, err := host.Snapshotter(lamina.DefaultName)
		if err != nil {
			return nil, nil, errors.Join(err, host.Close())
		}
		return sn, func() error {
			err := errors.Join(sn.Close(), host.Close())
			b.check(t, filepath.Join(root, "lamina"))
			return err
		}, nil
	}
}

// throughSocket puts the daemon, a process of its own, behind containerd's proxy
// client.
func throughSocket(t *testing.T, b backend) testsuite.SnapshotterFunc {
	t.Helper()
	return func(_ context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		d := startDaemon(t, root, b)
		sn, closeProxy, err := d.connect(lamina.DefaultName)
		if err != nil {
			return nil, nil, err
		}
		return sn, func() error {
			err := closeProxy()
			d.stop()
			b.check(t, d.root())
			return err
		}, nil
	}
}

// TestConformance runs containerd's own suite on the snapshotter in this
// process.
func TestConformance(t *testing.T) {
	requireRoot(t)
	testsuite.SnapshotterSuite(t, union.suiteName(), inProcess(t, union))
}

// TestConformanceThroughMetadata runs the suite on containerd's metadata layer
// with the snapshotter below it, as containerd's clients see it.
func TestConformanceThroughMetadata(t *testing.T) {
	requireRoot(t)
	open := inProcess(t, union)
	testsuite.SnapshotterSuite(t, union.suiteName(), func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		below, closeBelow, err := open(ctx, root)
		if err != nil {
			return nil, nil, err
		}
		db, err := bolt.Open(filepath.Join(root, "metadata.db"), 0o600, nil)
		if err != nil {
			return nil, nil, errors.Join(err, closeBelow())
		}
		sn := metadata.NewDB(db, nil, map[string]snapshots.Snapshotter{"lamina": below}).Snapshotter("lamina")
		return sn, func() error { return errors.Join(sn.Close(), closeBelow(), db.Close()) }, nil
	})
}

// TestConformanceThroughSocket runs the suite with the daemon behind the socket.
func TestConformanceThroughSocket(t *testing.T) {
	requireRoot(t)
	testsuite.SnapshotterSuite(t, union.suiteName(), throughSocket(t, union))
}

// deepest bounds each case of the suite on volumes. Preparing, mounting and
// committing 128 layers is the longest; containerd's own devmapper takes 460 s
// for it in the guest.
const deepest = 3 * time.Minute

// TestThinConformance runs the suite on the thin backend in both ways, each on a file system of its own, with LAMINA_TORTURE=1 on both.
func TestThinConformance(t *testing.T) {
	for _, way := range []struct {
		name string
		on   backend
		open func(*testing.T, backend) testsuite.SnapshotterFunc
	}{{"in-process-", thinXFS, inProcess}, {"socket-", thinExt4, throughSocket}} {
		forThin(t, way.name, ordinarily(way.on), func(t *testing.T, b backend) {
			t.Helper()
			var longest atomic.Int64
			testsuite.SnapshotterSuite(t, b.suiteName(), timed(way.open(t, b), &longest))
			t.Cleanup(func() { // the cases run after this function
				took := time.Duration(longest.Load())
				t.Logf("the longest case took %v", took)
				if took > deepest {
					t.Errorf("that is more than %v", deepest)
				}
			})
		})
	}
}

// timed keeps the longest time from an open to its close.
func timed(open testsuite.SnapshotterFunc, longest *atomic.Int64) testsuite.SnapshotterFunc {
	return func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		start := time.Now()
		sn, closeIt, err := open(ctx, root)
		if err != nil {
			return nil, nil, err
		}
		return sn, func() error {
			took := int64(time.Since(start))
			for old := longest.Load(); took > old && !longest.CompareAndSwap(old, took); old = longest.Load() {
			}
			return closeIt()
		}, nil
	}
}
