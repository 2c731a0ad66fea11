package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/log"
	"golang.org/x/net/netutil"

	"github.com/lamina-snapshotter/lamina/admin"
)

const (
	// localHeaderTime is how long a client may take to ask.
	localHeaderTime = 5 * time.Second
	// localConnections is how many clients a port has at once; others wait. Every process of the host can be one.
	localConnections = 64
)

// localNetwork returns on what an address that a key of the configuration names is listened: a unix socket, or a port of this host's
// loopback. Everything else is an error: nobody is asked who they are.
func localNetwork(key, address string) (network, at string, err error) {
	if path := strings.TrimPrefix(address, "unix:"); path != address || filepath.IsAbs(path) {
		return "unix", path, validateAddress(key, path)
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", "", fmt.Errorf("%s: %q is neither the path of a socket (/PATH or unix:/PATH) nor a loopback address (127.0.0.1:PORT, [::1]:PORT, localhost:PORT)", key, address)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return "", "", fmt.Errorf("%s: %q: %q is not the number of a port", key, address, port)
	}
	if host == "localhost" {
		host = "127.0.0.1" // whatever a resolver makes of it
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return "", "", fmt.Errorf("%s: %q could be reached from other hosts, and nobody is asked for a password: "+
			"it is served on 127.0.0.1, [::1], localhost or a unix socket alone", key, address)
	}
	return "tcp", net.JoinHostPort(host, port), nil
}

// A localServer serves HTTP to this host while it is open.
type localServer struct {
	address string // that it has; a port is chosen for 0
	http    *http.Server
	release func() error // of the socket
	served  chan struct{}
}

// openLocal listens on the address that a key of the configuration names. An address that somebody has is errInUse.
func openLocal(ctx context.Context, key, address string, h http.Handler) (*localServer, error) {
	network, at, err := localNetwork(key, address)
	if err != nil {
		return nil, err
	}
	s := &localServer{served: make(chan struct{}), release: func() error { return nil }}
	var l net.Listener
	if network == "unix" {
		sock, err := listen(ctx, key, at)
		if err != nil {
			return nil, err
		}
		l, s.release = sock, sock.release
	} else {
		if l, err = new(net.ListenConfig).Listen(ctx, network, at); err != nil {
			return nil, fmt.Errorf("%s: %w", key, inUse(err))
		}
		l = netutil.LimitListener(l, localConnections)
		h = forThisHost(h)
	}
	s.http = &http.Server{
		Handler: admin.EndOnPanic(h), ReadHeaderTimeout: localHeaderTime, IdleTimeout: time.Minute, ErrorLog: admin.ErrorLog(ctx),
	}
	go func() {
		defer close(s.served)
		if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.G(ctx).WithError(err).Errorf("%s is served no more", key) // the snapshots are
		}
	}()
	s.address = l.Addr().String()
	log.G(ctx).WithField("address", s.address).Info("serving " + strings.TrimSuffix(key, ".address"))
	return s, nil
}

// close cuts off what is asked, which is not worth a stop's time.
func (s *localServer) close() error {
	if s == nil {
		return nil
	}
	err := s.http.Close()
	<-s.served
	return errors.Join(err, s.release())
}

// forThisHost answers only who means this host, and is no page of a browser: one of a foreign site, whose name its owner has resolve
// to the loopback (DNS rebinding), says that name in Host, and one that asks for 127.0.0.1 openly is told of by the browser.
func forThisHost(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		site := r.Header.Get("Sec-Fetch-Site")
		if !loopbackHost(r.Host) || r.Header.Get("Origin") != "" || site != "" && site != "none" && site != "same-origin" {
			http.Error(w, "this is for clients on this host, which call it 127.0.0.1, [::1] or localhost", http.StatusForbidden)
			return
		}
		if r.ContentLength != 0 {
			// A ReadTimeout would end a profile, which takes longer, as well.
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(localHeaderTime)) // a connection has deadlines
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
