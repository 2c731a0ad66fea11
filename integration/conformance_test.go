package integration

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	bolt "go.etcd.io/bbolt"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/lamina-snapshotter/lamina"
)

// suiteName makes the suite leave out the one thing that no overlay does:
// renaming a directory of a lower layer without redirect_dir.
const suiteName = "overlayfs"

// openHost opens Lamina in this process.
func openHost(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
	host, err := lamina.Open(ctx, lamina.Config{
		Root:         filepath.Join(root, "lamina"),
		Snapshotters: map[string]lamina.SnapshotterConfig{"lamina": {Backend: lamina.BackendUnion}},
	})
	if err != nil {
		return nil, nil, err
	}
	sn, err := host.Snapshotter("lamina")
	if err != nil {
		return nil, nil, errors.Join(err, host.Close())
	}
	return sn, func() error { return errors.Join(sn.Close(), host.Close()) }, nil
}

// TestConformance runs containerd's own suite on the snapshotter in this
// process.
func TestConformance(t *testing.T) {
	requireRoot(t)
	testsuite.SnapshotterSuite(t, suiteName, openHost)
}

// TestConformanceThroughMetadata runs the suite on containerd's metadata layer
// with the snapshotter below it, as containerd's clients see it.
func TestConformanceThroughMetadata(t *testing.T) {
	requireRoot(t)
	testsuite.SnapshotterSuite(t, suiteName, func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		below, closeBelow, err := openHost(ctx, root)
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

// TestConformanceThroughSocket runs the suite on containerd's proxy client with
// the daemon, a process of its own, behind the socket.
func TestConformanceThroughSocket(t *testing.T) {
	requireRoot(t)
	testsuite.SnapshotterSuite(t, suiteName, func(_ context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		d := startDaemon(t, root)
		conn, err := grpc.NewClient("unix://"+d.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return nil, nil, err
		}
		sn := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "lamina")
		return sn, func() error {
			err := errors.Join(sn.Close(), conn.Close())
			d.stop()
			return err
		}, nil
	})
}
