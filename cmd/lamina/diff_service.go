package main

import (
	"context"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	"github.com/containerd/containerd/v2/contrib/diffservice"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/leases"
	leasesproxy "github.com/containerd/containerd/v2/core/leases/proxy"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"

	"github.com/lamina-snapshotter/lamina/differ"
	"github.com/lamina-snapshotter/lamina/metrics"
)

// A diffService serves Diff of containerd's diff API. To Apply it says "not implemented", for containerd to go on to its own, as that
// unpacks as fast (docs/architecture.md, "Why layers are not unpacked by Lamina").
//
// A Diff has no time limit of its own. Nothing waits for it but its client, who may cancel it, and how long it takes depends on how much
// has changed; containerd holds no lock over it, as over calls of the snapshots API.
type diffService struct {
	diffapi.DiffServer

	log     *log.Entry
	metrics *metrics.Metrics // nil counts nothing
}

// registerDiff serves what source tells, for the containerd at the other end of conn.
func registerDiff(server *grpc.Server, logger *log.Entry, m *metrics.Metrics, source differ.Source, conn *grpc.ClientConn) {
	manager := reconnecting{leasesproxy.NewLeaseManager(leasesapi.NewLeasesClient(conn)), conn}
	d := differ.New(source, contentproxy.NewContentStore(contentapi.NewContentClient(conn)), manager)
	diffapi.RegisterDiffServer(server, &diffService{DiffServer: diffservice.FromApplierAndComparer(nil, d), log: logger, metrics: m})
}

// reconnectDelay is how soon after a failure a connection is tried again, at most. Who calls is the containerd at its other end, so it does run.
const reconnectDelay = time.Second

// dialContainerd connects with the first call, and again whenever the connection is lost. A containerd that does not run makes calls fail.
func dialContainerd(address string) (*grpc.ClientConn, error) {
	retry := backoff.DefaultConfig
	retry.MaxDelay = reconnectDelay
	return dial(address,
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: retry, MinConnectTimeout: reconnectDelay}),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(defaults.DefaultMaxRecvMsgSize), grpc.MaxCallSendMsgSize(defaults.DefaultMaxSendMsgSize)))
}

// reconnecting is containerd's lease manager, whose Create is the first call of a Diff to containerd. It waits for the connection: one that
// was lost would fail the calls until it is tried again.
type reconnecting struct {
	leases.Manager

	conn *grpc.ClientConn
}

func (m reconnecting) Create(ctx context.Context, opts ...leases.Opt) (leases.Lease, error) {
	m.awaitReady(ctx)
	return m.Manager.Create(ctx, opts...) // if not even now, it says why
}

func (m reconnecting) awaitReady(ctx context.Context) {
	m.conn.ResetConnectBackoff()
	ctx, cancel := context.WithTimeout(ctx, reconnectDelay)
	defer cancel()
	for state := m.conn.GetState(); state != connectivity.Ready; state = m.conn.GetState() {
		m.conn.Connect()
		if !m.conn.WaitForStateChange(ctx, state) {
			return
		}
	}
}

// Diff logs each layer that was written in one line.
func (s *diffService) Diff(ctx context.Context, r *diffapi.DiffRequest) (reply *diffapi.DiffResponse, err error) {
	ctx, done := begin(ctx, s.log, s.metrics, metrics.Diff, log.Fields{})
	defer func() {
		var fields log.Fields
		if err == nil {
			fields = log.Fields{"digest": reply.GetDiff().GetDigest(), "size": reply.GetDiff().GetSize()}
		}
		done(err, log.InfoLevel, fields)
	}()
	// gRPC hands on no metadata by itself: the namespace is said anew to the content store.
	ns, ok := namespaces.Namespace(ctx)
	if !ok {
		return nil, errgrpc.ToGRPCf(errdefs.ErrInvalidArgument, "the request has no namespace")
	}
	return s.DiffServer.Diff(namespaces.WithNamespace(ctx, ns), r)
}
