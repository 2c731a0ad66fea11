package admin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/containerd/errdefs"
)

const (
	headerTime = 5 * time.Second
	headerSize = 64 << 10 // a key may be long
	idleTime   = time.Minute
)

// errStopping is what a request ends with that a stop cuts off.
var errStopping = fmt.Errorf("the daemon is stopping: %w", errdefs.ErrUnavailable)

// A Server answers on a unix socket from Serve to Stop.
type Server struct {
	http   *http.Server
	cancel context.CancelCauseFunc
}

// NewServer returns a server of what Handler returned. What ctx carries the handlers get; its end is not theirs, Stop is.
func NewServer(ctx context.Context, h http.Handler) *Server {
	base, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	return &Server{cancel: cancel, http: &http.Server{
		Handler:           h,
		BaseContext:       func(net.Listener) context.Context { return base },
		ConnContext:       withPeer,
		ReadHeaderTimeout: headerTime,
		MaxHeaderBytes:    headerSize,
		IdleTimeout:       idleTime,
		ErrorLog:          ErrorLog(ctx),
	}}
}

// Serve answers until Stop, or until the listener fails.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Stop closes the listener, cancels what is asked, and waits until that has returned, as long as ctx lets it. What has not returned then
// is stuck in the kernel, and goes on; its connection is closed.
func (s *Server) Stop(ctx context.Context) error {
	s.cancel(errStopping)
	if err := s.http.Shutdown(ctx); err != nil {
		return errors.Join(err, s.http.Close())
	}
	return nil
}
