package main

import (
	"context"
	"net/http"
	"net/http/pprof"
	"runtime"
	"time"
)

const (
	// blockRate and mutexFraction are how much of the waiting is sampled: waits of 0.1 ms and more always and shorter ones in
	// proportion, and one in a hundred contended locks. Neither shows in how long a call takes.
	blockRate     = int(100 * time.Microsecond)
	mutexFraction = 100
)

// A profiler serves net/http/pprof while it is open. It is for this host alone: a profile tells keys and paths, and takes a
// processor for as long as asked.
type profiler struct {
	*localServer
}

// openProfiler listens on an address, or on none if it is empty: then nothing is sampled.
func openProfiler(ctx context.Context, address string) (*profiler, error) {
	if address == "" {
		return nil, nil //nolint:nilnil // close takes a nil
	}
	s, err := openLocal(ctx, "pprof", address, profiles())
	if err != nil {
		return nil, err
	}
	runtime.SetBlockProfileRate(blockRate)
	runtime.SetMutexProfileFraction(mutexFraction)
	return &profiler{s}, nil
}

// profiles are pprof's handlers, which it has under /debug/pprof/ in a mux that all packages share, and which is not served.
func profiles() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}

func (p *profiler) close() error {
	if p == nil {
		return nil
	}
	err := p.localServer.close()
	runtime.SetBlockProfileRate(0)
	runtime.SetMutexProfileFraction(0)
	return err
}
