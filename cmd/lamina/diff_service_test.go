package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	"github.com/containerd/containerd/v2/core/diff"
	diffproxy "github.com/containerd/containerd/v2/core/diff/proxy"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/differ"
)

// A fakeSource tells of no change in mounts of type "ours".
type fakeSource struct{}

func (fakeSource) Changes(_ context.Context, _, upper []mount.Mount, _ func(differ.Change) error) error {
	if len(upper) != 1 || upper[0].Type != "ours" {
		return fmt.Errorf("mounts of others: %w", errdefs.ErrNotImplemented)
	}
	return nil
}

type applierComparer interface {
	diff.Applier
	diff.Comparer
}

// tDiffer serves the diff API for a containerd that does not run, and returns what containerd calls it with.
func tDiffer(t *testing.T) (applierComparer, *logBuffer) {
	t.Helper()
	logger, logged := tLogger(t, "info")
	containerd, err := dialContainerd(filepath.Join(t.TempDir(), "no.sock"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = containerd.Close() })
	s := newServer(newService(logger, nil))
	registerDiff(s.grpc, logger, nil, fakeSource{}, containerd)
	conn, _ := tServe(t, s)
	return diffproxy.NewDiffApplier(diffapi.NewDiffClient(conn)).(applierComparer), logged
}

func TestDiff(t *testing.T) {
	d, logged := tDiffer(t)
	ctx := namespaces.WithNamespace(t.Context(), "ns")
	ours, others := []mount.Mount{{Type: "ours"}}, []mount.Mount{{Type: "overlay"}}
	// containerd goes on to its own differ, also while its content store cannot be reached.
	_, err := d.Compare(ctx, others, others)
	require.ErrorIs(t, err, errdefs.ErrNotImplemented)
	_, err = d.Apply(ctx, ocispec.Descriptor{}, ours)
	require.ErrorIs(t, err, errdefs.ErrNotImplemented)
	logged.lines()

	_, err = d.Compare(ctx, ours, ours)
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	lines := logged.lines()
	require.Len(t, lines, 1)
	for _, want := range []string{"method=Diff", "namespace=ns", "class=Unavailable", "call failed"} {
		require.True(t, strings.Contains(lines[0], want), "%q is not in %s", want, lines[0])
	}

	_, err = d.Compare(t.Context(), ours, ours)
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
}
