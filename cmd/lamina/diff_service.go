package main

import (
	"context"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	"github.com/containerd/containerd/v2/contrib/diffservice"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	leasesproxy "github.com/containerd/containerd/v2/core/leases/proxy"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/lamina-snapshotter/lamina/differ"
)

// A diffService serves containerd's diff API, of which Diff alone: Apply is not implemented, so containerd goes on to its own.
//
// A Diff has no time limit of its own. Nothing waits for it but its client, who may cancel it, and how long it takes depends on how much
// has changed; containerd holds no lock over it, as over calls of the snapshots API.
type diffService struct {
	diffapi.DiffServer

	log *log.Entry
}

// registerDiff serves what source tells, for the containerd at the other end of conn.
func registerDiff(server *grpc.Server, logger *log.Entry, source differ.Source, conn *grpc.ClientConn) {
	d := differ.New(source, contentproxy.NewContentStore(contentapi.NewContentClient(conn)), leasesproxy.NewLeaseManager(leasesapi.NewLeasesClient(conn)))
	diffapi.RegisterDiffServer(server, &diffService{DiffServer: diffservice.FromApplierAndComparer(nil, d), log: logger})
}

// reconnectDelay is how soon after a failure a connection is tried again, at most. Who calls is the containerd at its other end, so it does run.
const reconnectDelay = time.Second

// dialContainerd connects with the first call, and again whenever the connection is lost. A containerd that does not run makes calls fail at
// once.
func dialContainerd(address string) (*grpc.ClientConn, error) {
	retry := backoff.DefaultConfig
	retry.MaxDelay = reconnectDelay
	return grpc.NewClient("unix:"+address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: retry, MinConnectTimeout: reconnectDelay}),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(defaults.DefaultMaxRecvMsgSize), grpc.MaxCallSendMsgSize(defaults.DefaultMaxSendMsgSize)))
}

// Diff logs each layer that was written in one line.
func (s *diffService) Diff(ctx context.Context, r *diffapi.DiffRequest) (reply *diffapi.DiffResponse, err error) {
	ctx, done := begin(ctx, s.log, log.Fields{})
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
