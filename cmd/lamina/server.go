package main

import (
	"context"
	"errors"
	"net"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/log"
	"github.com/coreos/go-systemd/v22/daemon"
	"google.golang.org/grpc"
)

const (
	// finishTime is how long calls under way may take to finish once the daemon is asked to stop.
	finishTime = 30 * time.Second
	// cancelTime is how long they may take to return after their contexts are cancelled. With the 30 s that
	// closing the host may take, a stop stays within the 90 s that systemd waits by default.
	cancelTime = 10 * time.Second
	// greetTime is how long a client may take to begin speaking HTTP/2. A stop waits for one that has connected and says
	// nothing, so this is well below finishTime; gRPC's own default is two minutes.
	greetTime = 5 * time.Second
)

// What the transport itself costs is most of a short call. Measured with Stat, two cores, in turn:
const (
	// workers is how many goroutines wait for calls. A new one for each call begins with a stack that is too small for it: with
	// them the daemon takes an eighth less processor time for a call, and a quarter less for each of 32 at once. With more
	// calls than that under way, the others get goroutines of their own.
	workers = 32
	// window is the least that HTTP/2 has, and enough for requests of some hundred bytes on a unix socket. That it is set at all
	// keeps gRPC from measuring the link with a PING at most requests, whose answer is a third of all reads.
	window = 1<<16 - 1
)

// A server answers calls on a socket from run's begin to its end.
type server struct {
	grpc       *grpc.Server
	finishTime time.Duration
	cancelTime time.Duration
}

func newServer(s snapshotsapi.SnapshotsServer, more ...grpc.ServerOption) *server {
	g := grpc.NewServer(append([]grpc.ServerOption{
		// As in containerd, whose messages these are: a List or the labels of a snapshot may pass gRPC's own 4 MiB.
		grpc.MaxRecvMsgSize(defaults.DefaultMaxRecvMsgSize),
		grpc.MaxSendMsgSize(defaults.DefaultMaxSendMsgSize),
		grpc.ConnectionTimeout(greetTime),
		grpc.NumStreamWorkers(workers),
		grpc.InitialWindowSize(window),
		grpc.InitialConnWindowSize(window),
	}, more...)...)
	snapshotsapi.RegisterSnapshotsServer(g, s)
	return &server{grpc: g, finishTime: finishTime, cancelTime: cancelTime}
}

// run serves until ctx ends, or until the listener fails. It returns when no call is under way any more, or errCut
// when the calls would not finish in time. It closes l.
func (s *server) run(ctx context.Context, l net.Listener) error {
	served := make(chan error, 1)
	go func() { served <- s.grpc.Serve(l) }()
	// The socket has been listening since before, so whoever connects from here on is answered.
	notify(ctx, daemon.SdNotifyReady)
	var err error
	select {
	case err = <-served:
	case <-ctx.Done():
		log.G(ctx).Info("stopping")
	}
	notify(ctx, daemon.SdNotifyStopping)
	return errors.Join(err, s.stop())
}

// stop takes no more calls, lets those under way finish, and after a while cancels them.
func (s *server) stop() error {
	done := make(chan struct{})
	go func() {
		s.grpc.GracefulStop()
		close(done)
	}()
	if within(s.finishTime, done) {
		return nil
	}
	go s.grpc.Stop()
	// Cut off either way: those that return now were cancelled, and those that do not are stuck in the kernel, where
	// nothing reaches them.
	within(s.cancelTime, done)
	return errCut
}

// within reports whether done was closed before the time ran out.
func within(d time.Duration, done <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}

// notify tells systemd, if that started us. A supervisor that does not listen is no reason to stop.
func notify(ctx context.Context, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.G(ctx).WithError(err).Warn("cannot notify the service manager")
	}
}
