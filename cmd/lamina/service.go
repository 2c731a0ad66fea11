package main

import (
	"context"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/lamina-snapshotter/lamina/metrics"
)

// callTimeout bounds a call that the client did not bound. containerd holds locks over some calls, so one that never
// returns would stop more than its own caller.
const callTimeout = 10 * time.Minute

// A service serves containerd's snapshots API for several snapshotters. The name in each request picks one.
//
// It does not recover from panics, and neither does the gRPC library: a panic means that the state in memory is not what
// the code believes, perhaps with a lock held for ever, while what is on disk is right at any instant. So the process
// ends with the trace, and its supervisor starts it again.
type service struct {
	snapshotsapi.UnimplementedSnapshotsServer

	byName  map[string]snapshotsapi.SnapshotsServer
	log     *log.Entry
	timeout time.Duration
	memory  memory
	metrics *metrics.Metrics // nil counts nothing
}

func newService(logger *log.Entry, byName map[string]snapshots.Snapshotter) *service {
	s := &service{
		byName:  make(map[string]snapshotsapi.SnapshotsServer, len(byName)),
		log:     logger,
		timeout: callTimeout,
	}
	for name, sn := range byName {
		s.byName[name] = snapshotservice.FromSnapshotter(sn)
	}
	return s
}

// pick returns the server of a name. The error has the class that containerd's own snapshots service gives for a name
// it does not have; with NotFound a caller would take the snapshot for gone.
func (s *service) pick(name string) (snapshotsapi.SnapshotsServer, error) {
	server, ok := s.byName[name]
	if ok {
		return server, nil
	}
	served := strings.Join(slices.Sorted(maps.Keys(s.byName)), ", ")
	if name == "" {
		return nil, errgrpc.ToGRPCf(errdefs.ErrInvalidArgument, "the request names no snapshotter; served here: %s", served)
	}
	return nil, errgrpc.ToGRPCf(errdefs.ErrInvalidArgument, "snapshotter %q is not served here; served: %s", name, served)
}

// A request is what all requests of the API have in common.
type request interface {
	GetSnapshotter() string
}

// call runs one unary method of the snapshotter that r names, within the time limit, and logs how it went. The errors of
// the contrib service are gRPC statuses already.
func call[Q request, R any](ctx context.Context, s *service, r Q,
	method func(snapshotsapi.SnapshotsServer, context.Context, Q) (R, error),
) (reply R, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	ctx, done := s.begin(ctx, r)
	defer func() { done(err) }()
	server, err := s.pick(r.GetSnapshotter())
	if err != nil {
		return reply, err
	}
	return method(server, ctx, r)
}

// begin gives the call's context a logger that names the call, and returns what is to run at its end: it logs a call
// that failed in one line, and one that went well only at the debug level.
func (s *service) begin(ctx context.Context, r request) (context.Context, func(error)) {
	fields := log.Fields{"snapshotter": r.GetSnapshotter()}
	if key := keyOf(r); key != "" {
		fields["key"] = key
	}
	s.memory.called()
	ctx, done := begin(ctx, s.log, s.metrics, r.GetSnapshotter(), fields)
	return ctx, func(err error) { done(err, log.DebugLevel, nil) }
}

// begin is the begin of a call of any service, which is counted as the snapshotter's. What went well is logged at a level, with what it
// returned.
func begin(ctx context.Context, logger *log.Entry, m *metrics.Metrics, snapshotter string, fields log.Fields) (
	context.Context, func(err error, level log.Level, returned log.Fields),
) {
	start := time.Now()
	fullMethod, _ := grpc.Method(ctx)
	method := path.Base(fullMethod)
	counted := m.Begin(snapshotter, method)
	fields["method"] = method
	// As namespaces.Namespace does, which copies all headers.
	if ns := metadata.ValueFromIncomingContext(ctx, namespaces.GRPCHeader); len(ns) > 0 {
		fields["namespace"] = ns[0]
	}
	entry := logger.WithFields(fields)
	return log.WithLogger(ctx, entry), func(err error, level log.Level, returned log.Fields) {
		class := status.Code(err)
		counted.End(class.String())
		if err == nil && !entry.Logger.IsLevelEnabled(level) {
			return // most calls, whose line would be made for nothing
		}
		entry := entry.WithField("duration", time.Since(start).String())
		if err == nil {
			entry.WithFields(returned).Log(level, "call done")
			return
		}
		entry = entry.WithFields(log.Fields{"class": class.String(), "error": status.Convert(err).Message()})
		if isAnswer(class) {
			entry.Info("call refused")
		} else {
			entry.Error("call failed")
		}
	}
}

// keyOf returns the snapshot that a request is about, or "".
func keyOf(r request) string {
	switch r := r.(type) {
	case interface{ GetKey() string }:
		return r.GetKey()
	case *snapshotsapi.UpdateSnapshotRequest:
		return r.GetInfo().GetName()
	default:
		return ""
	}
}

// isAnswer reports whether an error of that class tells the caller something about its request. containerd provokes
// these all day: it asks for layers that are not there yet, and removes parents before children. The others say that
// something is wrong here.
func isAnswer(class codes.Code) bool {
	switch class {
	case codes.NotFound, codes.AlreadyExists, codes.FailedPrecondition, codes.InvalidArgument,
		codes.OutOfRange, codes.Unimplemented, codes.Canceled, codes.Aborted:
		return true
	default:
		return false
	}
}

func (s *service) Prepare(ctx context.Context, r *snapshotsapi.PrepareSnapshotRequest) (*snapshotsapi.PrepareSnapshotResponse, error) {
	return call(ctx, s, r, snapshotsapi.SnapshotsServer.Prepare)
}

func (s *service) View(ctx context.Context, r *snapshotsapi.ViewSnapshotRequest) (*snapshotsapi.ViewSnapshotResponse, error) {
	return call(ctx, s, r, snapshotsapi.SnapshotsServer.View)
}

func (s *service) Mounts(ctx context.Context, r *snapshotsapi.MountsRequest) (*snapshotsapi.MountsResponse, error) {
	return call(ctx, s, r, snapshotsapi.SnapshotsServer.Mounts)
}

func (s *service) Commit(ctx context.Context, r *snapshotsapi.CommitSnapshotRequest) (*emptypb.Empty, error) {
	return call(ctx, s, r, snapshotsapi.SnapshotsServer.Commit)
}

func (s *service) Remove(ctx context.Context, r *snapshotsapi.RemoveSnapshotRequest) (*emptypb.Empty, error) {
	return call(ctx, s, r, snapshotsapi.SnapshotsServer.Remove)
}

func (s *service) Stat(ctx context.Context, r *snapshotsapi.StatSnapshotRequest) (*snapshotsapi.StatSnapshotResponse, error) {
	return call(ctx, s, r, snapshotsapi.SnapshotsServer.Stat)
}

// Update refuses a request without info, which the contrib service would follow as a nil pointer.
func (s *service) Update(ctx context.Context, r *snapshotsapi.UpdateSnapshotRequest) (*snapshotsapi.UpdateSnapshotResponse, error) {
	return call(ctx, s, r, func(server snapshotsapi.SnapshotsServer, ctx context.Context, r *snapshotsapi.UpdateSnapshotRequest) (*snapshotsapi.UpdateSnapshotResponse, error) {
		if r.GetInfo() == nil {
			return nil, errgrpc.ToGRPCf(errdefs.ErrInvalidArgument, "the request has no info")
		}
		return server.Update(ctx, r)
	})
}

func (s *service) Usage(ctx context.Context, r *snapshotsapi.UsageRequest) (*snapshotsapi.UsageResponse, error) {
	return call(ctx, s, r, snapshotsapi.SnapshotsServer.Usage)
}

func (s *service) Cleanup(ctx context.Context, r *snapshotsapi.CleanupRequest) (*emptypb.Empty, error) {
	return call(ctx, s, r, snapshotsapi.SnapshotsServer.Cleanup)
}

// manyListed is from how many snapshots on what a List took of memory is worth being given back: 20 MiB pass through the heap for 10,000.
// containerd walks once each time that it collects garbage.
const manyListed = 2000

// maxListed is how many bytes of snapshots are sent at once. The contrib service sends them by the hundred, and gRPC has the buffers of
// messages beyond 32 KiB in pieces of 1 MiB: a List had 7 MiB of them in use. With the labels that a snapshot may have, a hundred
// would pass what a message may have, too, and containerd could collect no garbage any more.
const maxListed = 31 << 10

// A countedList is the stream of a List that knows how many snapshots went through it, and sends what is too much for one message in
// several.
type countedList struct {
	snapshotsapi.Snapshots_ListServer

	listed int
}

func (c *countedList) Send(r *snapshotsapi.ListSnapshotsResponse) error {
	infos := r.GetInfo()
	c.listed += len(infos)
	from, size := 0, 0
	for i, info := range infos {
		one := proto.Size(info)
		if i > from && size+one > maxListed {
			if err := c.Snapshots_ListServer.Send(&snapshotsapi.ListSnapshotsResponse{Info: infos[from:i]}); err != nil {
				return err
			}
			from, size = i, 0
		}
		size += one
	}
	if from == 0 {
		return c.Snapshots_ListServer.Send(r)
	}
	return c.Snapshots_ListServer.Send(&snapshotsapi.ListSnapshotsResponse{Info: infos[from:]})
}

// List streams. The contrib service returns Walk's error as it is, so its class is added here; an error of the stream is
// a status already and stays. The client bounds how long a stream may take.
func (s *service) List(r *snapshotsapi.ListSnapshotsRequest, stream snapshotsapi.Snapshots_ListServer) (err error) {
	_, done := s.begin(stream.Context(), r)
	defer func() { done(err) }()
	server, err := s.pick(r.GetSnapshotter())
	if err != nil {
		return err
	}
	counted := &countedList{Snapshots_ListServer: stream}
	err = server.List(r, counted)
	if counted.listed >= manyListed {
		s.memory.answered()
	}
	return errgrpc.ToGRPC(err)
}
