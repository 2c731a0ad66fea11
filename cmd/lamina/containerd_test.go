package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	diffproxy "github.com/containerd/containerd/v2/core/diff/proxy"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/lamina-snapshotter/lamina/differ"
)

// A fakeContainerd is what a daemon asks of containerd: a content store, and leases.
type fakeContainerd struct {
	leasesapi.UnimplementedLeasesServer

	t       *testing.T
	content content.Store
	address string

	mu     sync.Mutex
	leases map[string]bool
}

// tContainerd returns one that does not run yet.
func tContainerd(t *testing.T, address string) *fakeContainerd {
	t.Helper()
	return &fakeContainerd{t: t, address: address, leases: make(map[string]bool)}
}

// run serves, with an empty content store, until the end of the test, or until it is killed.
func (c *fakeContainerd) run() (kill func()) {
	c.t.Helper()
	require.NoError(c.t, os.MkdirAll(filepath.Dir(c.address), 0o700))
	l, err := (&net.ListenConfig{}).Listen(c.t.Context(), "unix", c.address)
	require.NoError(c.t, err)
	c.content, err = local.NewStore(c.t.TempDir())
	require.NoError(c.t, err)
	s := grpc.NewServer(grpc.MaxRecvMsgSize(defaults.DefaultMaxRecvMsgSize), grpc.WaitForHandlers(true))
	contentapi.RegisterContentServer(s, contentserver.New(c.content))
	leasesapi.RegisterLeasesServer(s, c)
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	kill = sync.OnceFunc(func() {
		s.Stop()
		<-ended
	})
	c.t.Cleanup(kill)
	return kill
}

func (c *fakeContainerd) Create(_ context.Context, r *leasesapi.CreateRequest) (*leasesapi.CreateResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leases[r.GetID()] = true
	return &leasesapi.CreateResponse{Lease: &leasesapi.Lease{ID: r.GetID()}}, nil
}

func (c *fakeContainerd) Delete(_ context.Context, r *leasesapi.DeleteRequest) (*emptypb.Empty, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.leases, r.GetID())
	return new(emptypb.Empty), nil
}

// ingests returns how many there are that have content.
func (c *fakeContainerd) ingests() (n int) {
	c.t.Helper()
	all, err := c.content.ListStatuses(c.t.Context())
	if err != nil { // one ended meanwhile
		return 0
	}
	for _, s := range all {
		if s.Offset > 0 {
			n++
		}
	}
	return n
}

// noneLeft checks that nothing of a layer is there.
func (c *fakeContainerd) noneLeft() {
	c.t.Helper()
	all, err := c.content.ListStatuses(c.t.Context())
	require.NoError(c.t, err)
	require.Empty(c.t, all)
	c.mu.Lock()
	defer c.mu.Unlock()
	require.Empty(c.t, c.leases)
}

// A longSource tells of a file of more than a piece of what is sent, calls between, and tells of it again.
type longSource struct {
	dir     string
	between func(context.Context) error
}

func tLongSource(t *testing.T, between func(context.Context) error) longSource {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "large"), bytes.Repeat([]byte("0123456789"), 150_000), 0o600))
	return longSource{dir: dir, between: between}
}

func (s longSource) Changes(ctx context.Context, _, _ []mount.Mount, fn func(differ.Change) error) error {
	d, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	defer d.Close()
	c := differ.Change{Path: "large", Stat: new(unix.Stat_t), Dir: int(d.Fd())}
	if err := unix.Fstatat(c.Dir, "large", c.Stat, 0); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{nil, s.between} {
		if step != nil {
			err = step(ctx)
		}
		if err = errors.Join(err, fn(c)); err != nil {
			return err
		}
	}
	return nil
}

// tDiffDaemon serves the diff API of a source for a containerd.
func tDiffDaemon(t *testing.T, source differ.Source, containerd string) (compare func() error, s *server, stop func() error) {
	t.Helper()
	logger, _ := tLogger(t, "info")
	conn, err := dialContainerd(containerd)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	s = newServer(newService(logger, nil))
	registerDiff(s.grpc, logger, nil, source, conn)
	client, stop := tServe(t, s)
	d, ok := diffproxy.NewDiffApplier(diffapi.NewDiffClient(client)).(diff.Comparer)
	require.True(t, ok)
	ours := []mount.Mount{{Type: "ours"}}
	return func() error {
		_, err := d.Compare(namespaces.WithNamespace(t.Context(), "ns"), ours, ours, diff.WithMediaType(ocispec.MediaTypeImageLayer))
		return err
	}, s, stop
}

// A containerd that comes back is reached at once, and not when a connection is due to be tried again.
func TestDiffReconnects(t *testing.T) {
	containerd := tContainerd(t, filepath.Join(filepath.Dir(tSocketPath(t)), "containerd.sock"))
	compare, _, _ := tDiffDaemon(t, fakeSource{}, containerd.address)
	for range 2 {
		require.ErrorIs(t, compare(), errdefs.ErrUnavailable)
		kill := containerd.run()
		require.NoError(t, compare())
		kill()
	}
}

// The path of a socket may have what has a meaning in a URL.
func TestDialPath(t *testing.T) {
	for _, name := range []string{"a%2Fb", "a%zz", "a?b", "a#b", "a b:c"} {
		containerd := tContainerd(t, filepath.Join(filepath.Dir(tSocketPath(t)), name))
		containerd.run()
		compare, _, _ := tDiffDaemon(t, fakeSource{}, containerd.address)
		require.NoError(t, compare(), name)
	}
}

// A containerd that ends in the midst of a layer is told of as such.
func TestDiffContainerdGoes(t *testing.T) {
	containerd := tContainerd(t, filepath.Join(filepath.Dir(tSocketPath(t)), "containerd.sock"))
	kill := containerd.run()
	compare, _, _ := tDiffDaemon(t, tLongSource(t, func(context.Context) error {
		require.Eventually(t, func() bool { return containerd.ingests() == 1 }, 10*time.Second, time.Millisecond)
		kill()
		return nil
	}), containerd.address)
	err := compare()
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	require.ErrorContains(t, err, "containerd's content store went away")
}

// A stop that cuts a Diff off leaves nothing of the layer in the content store.
func TestStopCancelsDiff(t *testing.T) {
	containerd := tContainerd(t, filepath.Join(filepath.Dir(tSocketPath(t)), "containerd.sock"))
	containerd.run()
	waits := make(chan struct{})
	compare, s, stop := tDiffDaemon(t, tLongSource(t, func(ctx context.Context) error {
		close(waits)
		<-ctx.Done()
		return ctx.Err()
	}), containerd.address)
	s.finishTime = 10 * time.Millisecond
	result := make(chan error, 1)
	go func() { result <- compare() }()
	<-waits
	require.Eventually(t, func() bool { return containerd.ingests() == 1 }, 10*time.Second, time.Millisecond)
	begun := time.Now()
	require.ErrorIs(t, stop(), errCut)
	require.Less(t, time.Since(begun), s.cancelTime, "the call has not returned")
	containerd.noneLeft()
	require.Error(t, <-result)
}
