package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/log"
)

const (
	// blockRate and mutexFraction are how much of the waiting is sampled: waits of 0.1 ms and more always and shorter ones in
	// proportion, and one in a hundred contended locks. Neither shows in how long a call takes.
	blockRate     = int(100 * time.Microsecond)
	mutexFraction = 100

	// headerTime is how long a client of pprof may take to ask.
	headerTime = 5 * time.Second
)

// pprofNetwork returns on what an address of pprof is listened: a unix socket, or a port of this host's loopback. Everything
// else is an error: a profile tells keys and paths, takes a processor for as long as asked, and nobody is asked who they are.
func pprofNetwork(address string) (network, at string, err error) {
	if path := strings.TrimPrefix(address, "unix:"); path != address || filepath.IsAbs(path) {
		return "unix", path, validateAddress("pprof", path)
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", "", fmt.Errorf("pprof: %q is neither the path of a socket (/PATH or unix:/PATH) nor a loopback address (127.0.0.1:PORT, [::1]:PORT, localhost:PORT)", address)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return "", "", fmt.Errorf("pprof: %q: %q is not the number of a port", address, port)
	}
	if host == "localhost" {
		host = "127.0.0.1" // whatever a resolver makes of it
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return "", "", fmt.Errorf("pprof: %q could be reached from other hosts, and pprof asks nobody for a password: "+
			"it is served on 127.0.0.1, [::1], localhost or a unix socket alone", address)
	}
	return "tcp", net.JoinHostPort(host, port), nil
}

// A profiler serves net/http/pprof while it is open.
type profiler struct {
	address string // that it has; a port is chosen for 0
	http    *http.Server
	release func() error // of the socket
	served  chan struct{}
}

// openProfiler listens on an address, or on none if it is empty: then nothing is sampled.
func openProfiler(ctx context.Context, address string) (*profiler, error) {
	if address == "" {
		return nil, nil //nolint:nilnil // close takes a nil
	}
	network, at, err := pprofNetwork(address)
	if err != nil {
		return nil, err
	}
	p := &profiler{served: make(chan struct{}), release: func() error { return nil }}
	handler := profiles()
	var l net.Listener
	if network != "unix" {
		handler = forThisHost(handler)
	}
	if network == "unix" {
		var s *socket
		if s, err = listen(ctx, "pprof", at); err == nil {
			l, p.release = s, s.release
		}
	} else if l, err = new(net.ListenConfig).Listen(ctx, network, at); err != nil {
		err = fmt.Errorf("pprof: %w", inUse(err))
	}
	if err != nil {
		return nil, err
	}
	runtime.SetBlockProfileRate(blockRate)
	runtime.SetMutexProfileFraction(mutexFraction)
	p.http = &http.Server{Handler: handler, ReadHeaderTimeout: headerTime, IdleTimeout: time.Minute}
	go func() {
		defer close(p.served)
		if err := p.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.G(ctx).WithError(err).Error("pprof is served no more") // the snapshots are
		}
	}()
	p.address = l.Addr().String()
	log.G(ctx).WithField("address", p.address).Info("serving profiles")
	return p, nil
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

// forThisHost answers only who means this host, and is no page of a browser: one of a foreign site, whose name its owner has resolve
// to the loopback (DNS rebinding), says that name in Host, and one that asks for 127.0.0.1 openly is told of by the browser.
func forThisHost(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		site := r.Header.Get("Sec-Fetch-Site")
		if !loopbackHost(r.Host) || r.Header.Get("Origin") != "" || site != "" && site != "none" && site != "same-origin" {
			http.Error(w, "profiles are for clients on this host, which call it 127.0.0.1, [::1] or localhost", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// loopbackHost reports whether a Host header, with a port or without, is a loopback literal or localhost.
func loopbackHost(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	ip := net.ParseIP(strings.TrimSuffix(strings.TrimPrefix(host, "["), "]"))
	return strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback()
}

// close cuts off what is asked: a profile takes as long as its client wished, which is not worth a stop's time.
func (p *profiler) close() error {
	if p == nil {
		return nil
	}
	err := p.http.Close()
	<-p.served
	runtime.SetBlockProfileRate(0)
	runtime.SetMutexProfileFraction(0)
	return errors.Join(err, p.release())
}
