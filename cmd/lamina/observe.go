package main

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/containerd/log"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/admin"
	"github.com/lamina-snapshotter/lamina/metadata"
	"github.com/lamina-snapshotter/lamina/metrics"
)

// An observed is what can be seen of a daemon from before its root is opened until after it is closed: a start or a stop that hangs is
// looked at through it.
type observed struct {
	metrics  *metrics.Metrics
	scraped  *localServer
	profiler *profiler
	tracer   *tracer
}

// openObserved listens where s says. An address that somebody has is errInUse, but of a second daemon that the root is in use, not
// what it has besides.
func openObserved(ctx context.Context, s settings) (o *observed, err error) {
	o = &observed{metrics: metrics.New(metrics.Options{
		Version: buildVersion(), Snapshotters: names(s.Config),
		Failed: func(err error) { log.G(ctx).WithError(err).Warn("a scrape was told what was known before") },
	})}
	defer func() {
		if err != nil {
			err = errors.Join(err, o.close(ctx))
		}
		if errors.Is(err, errInUse) {
			if locked := s.Locked(); errors.Is(locked, metadata.ErrLocked) {
				err = locked
			}
		}
	}()
	if o.profiler, err = openProfiler(ctx, s.Pprof); err != nil {
		return o, err
	}
	if s.Metrics.Address != "" {
		mux := http.NewServeMux()
		mux.Handle("GET "+metricsPath, o.metrics.Handler())
		if o.scraped, err = openLocal(ctx, "metrics.address", s.Metrics.Address, mux); err != nil {
			return o, err
		}
	}
	o.tracer, err = openTracer(ctx, s.Tracing.Endpoint)
	return o, err
}

// endpoint is the page of the metrics on the admin socket.
func (o *observed) endpoint() admin.Endpoint {
	return admin.Endpoint{
		Method: http.MethodGet, Path: metricsPath, Says: "metrics for Prometheus", Limit: 15 * time.Second, Serve: o.metrics.Handler(),
	}
}

// close ends with what a look at a stop that hangs needs.
func (o *observed) close(ctx context.Context) error {
	o.tracer.close(ctx)
	return errors.Join(o.scraped.close(), o.profiler.close())
}

func names(c lamina.Config) (names []string) {
	for name := range c.Snapshotters {
		names = append(names, name)
	}
	return names
}
