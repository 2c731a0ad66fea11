package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/metadata"
)

func TestPprofNetwork(t *testing.T) {
	for _, tc := range []struct{ address, network, at, err string }{
		{address: "/run/p.sock", network: "unix", at: "/run/p.sock"},
		{address: "unix:/run/p.sock", network: "unix", at: "/run/p.sock"},
		{address: "unix:///run/p.sock", network: "unix", at: "///run/p.sock"},
		{address: "127.0.0.1:6060", network: "tcp", at: "127.0.0.1:6060"},
		{address: "127.1.2.3:0", network: "tcp", at: "127.1.2.3:0"},
		{address: "[::1]:6060", network: "tcp", at: "[::1]:6060"},
		{address: "localhost:6060", network: "tcp", at: "127.0.0.1:6060"},
		{address: ":6060", err: "other hosts"},
		{address: "0.0.0.0:6060", err: "other hosts"},
		{address: "[::]:6060", err: "other hosts"},
		{address: "192.0.2.1:6060", err: "other hosts"},
		{address: "host.example:6060", err: "other hosts"},
		{address: "localhost.example:6060", err: "other hosts"},
		{address: "unix:p.sock", err: "not an absolute path"},
		{address: "/" + strings.Repeat("a", maxAddress), err: "107"},
		{address: "6060", err: "neither"},
		{address: "localhost:http", err: "not the number of a port"},
		{address: "127.0.0.1:65536", err: "not the number of a port"},
	} {
		network, at, err := localNetwork("pprof", tc.address)
		if tc.err != "" {
			require.ErrorContains(t, err, tc.err, tc.address)
			require.True(t, strings.HasPrefix(err.Error(), "pprof: "), err)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, []string{tc.network, tc.at}, []string{network, at}, tc.address)
	}
}

// tAsk gets a page of the profiler that listens at an address.
func tAsk(t *testing.T, network, at, page string) (*http.Response, error) {
	t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, at)
	}}
	t.Cleanup(transport.CloseIdleConnections)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	host := "lamina" // of a socket it can be any
	if network == "tcp" {
		host = at
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+"/debug/pprof/"+page, http.NoBody)
	require.NoError(t, err)
	return transport.RoundTrip(r)
}

func tPage(t *testing.T, network, at, page string) string {
	t.Helper()
	reply, err := tAsk(t, network, at, page)
	require.NoError(t, err)
	defer func() { _ = reply.Body.Close() }()
	text, err := io.ReadAll(reply.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, reply.StatusCode, "%s", text)
	return string(text)
}

// The profiles are there while it is open, and waiting is sampled for no longer.
func TestProfiler(t *testing.T) {
	path := tSocketPath(t)
	for _, address := range []string{"unix:" + path, "127.0.0.1:0"} {
		p, err := openProfiler(t.Context(), address)
		require.NoError(t, err)
		network, at := "unix", path
		if address != "unix:"+path {
			network, at = "tcp", p.address
		} else {
			tMode(t, path, fs.ModeSocket|0o600)
		}
		require.Equal(t, mutexFraction, runtime.SetMutexProfileFraction(-1))
		for page, want := range map[string]string{
			"": "goroutine", "goroutine?debug=1": "openLocal", "heap?debug=1": "HeapAlloc", "mutex?debug=1": "mutex",
			"block?debug=1": "cycles/second", "cmdline": filepath.Base(os.Args[0]), "symbol": "num_symbols", "trace?seconds=0.01": "go 1",
		} {
			require.Contains(t, tPage(t, network, at, page), want, "%s of %s", page, address)
		}
		require.NoError(t, p.close())
		require.Zero(t, runtime.SetMutexProfileFraction(-1))
		_, err = tAsk(t, network, at, "")
		require.Error(t, err, "it is closed")
	}
	_, err := os.Lstat(path)
	require.ErrorIs(t, err, fs.ErrNotExist)
}

// On a port only who calls the host by its loopback gets profiles, and no page of a browser.
func TestProfilerRefusesForeign(t *testing.T) {
	p, err := openProfiler(t.Context(), "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.close()) })
	_, port, err := net.SplitHostPort(p.address)
	require.NoError(t, err)
	for _, tc := range []struct {
		host, header, value string
		code                int
	}{
		{host: "127.0.0.1:" + port, code: http.StatusOK},
		{host: "localhost:" + port, code: http.StatusOK},
		{host: "[::1]:" + port, code: http.StatusOK},
		{host: "[::1]", code: http.StatusOK},
		{host: "rebound.example:" + port, code: http.StatusForbidden},
		{host: "localhost.example", code: http.StatusForbidden},
		{host: "192.0.2.1:" + port, code: http.StatusForbidden},
		{host: "localhost", header: "Sec-Fetch-Site", value: "none", code: http.StatusOK},
		{host: "localhost", header: "Sec-Fetch-Site", value: "cross-site", code: http.StatusForbidden},
		{host: "localhost", header: "Sec-Fetch-Site", value: "same-site", code: http.StatusForbidden},
		{host: "localhost", header: "Origin", value: "https://site.example", code: http.StatusForbidden},
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+p.address+"/debug/pprof/cmdline", http.NoBody)
		require.NoError(t, err)
		r.Host = tc.host
		if tc.header != "" {
			r.Header.Set(tc.header, tc.value)
		}
		reply, err := http.DefaultClient.Do(r)
		require.NoError(t, err)
		require.NoError(t, reply.Body.Close())
		require.Equal(t, tc.code, reply.StatusCode, "%+v", tc)
	}
}

// A profile that is under way ends with the daemon, which it does not keep.
func TestProfilerCutsOff(t *testing.T) {
	path := tSocketPath(t)
	p, err := openProfiler(t.Context(), path)
	require.NoError(t, err)
	got := make(chan error, 1)
	go func() {
		reply, err := tAsk(t, "unix", path, "profile?seconds=50")
		if err == nil {
			_, err = io.ReadAll(reply.Body)
			_ = reply.Body.Close()
		}
		got <- err
	}()
	profiling := func() bool { return strings.Contains(tPage(t, "unix", path, "goroutine?debug=1"), "pprof.Profile") }
	require.Eventually(t, profiling, 20*time.Second, 5*time.Millisecond)
	start := time.Now()
	require.NoError(t, p.close())
	require.Less(t, time.Since(start), 10*time.Second)
	require.Error(t, <-got)
}

// A socket of a daemon that was killed is replaced. What somebody listens on, and what is no socket, stays.
func TestProfilerAddressTaken(t *testing.T) {
	path := tSocketPath(t)
	require.NoError(t, os.Mkdir(filepath.Dir(path), 0o700))
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	dead.SetUnlinkOnClose(false)
	require.NoError(t, dead.Close())
	p, err := openProfiler(t.Context(), path)
	require.NoError(t, err)
	_, err = openProfiler(t.Context(), path)
	require.ErrorIs(t, err, errInUse)
	require.ErrorContains(t, err, "pprof: ")
	require.NoError(t, p.close())

	require.NoError(t, os.WriteFile(path, nil, 0o600))
	_, err = openProfiler(t.Context(), path)
	require.ErrorIs(t, err, fs.ErrExist)

	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	_, err = openProfiler(t.Context(), l.Addr().String())
	require.ErrorIs(t, err, errInUse)
	require.Zero(t, runtime.SetMutexProfileFraction(-1), "nothing is sampled where nothing is served")
}

// The daemon serves profiles if it is told to, and only then.
func TestServePprof(t *testing.T) {
	code, _, stderr := tRun(t, "serve", "--config", tFile(t, ""), "--pprof", "0.0.0.0:6060")
	require.Equal(t, exitConfig, code)
	require.Contains(t, stderr, "other hosts")
	code, _, stderr = tRun(t, "config", "--config", tFile(t, `pprof = ":1"`))
	require.Equal(t, exitConfig, code)
	require.Contains(t, stderr, "pprof")

	needRoot(t)
	path, address := tSocketPath(t), tSocketPath(t)
	config := tFile(t, "root = \""+filepath.Join(t.TempDir(), "root")+"\"\naddress = \""+address+"\"\n")
	d := startDaemon(t, "--config", config, "--pprof", path)
	tProxy(t, d, address, "lamina")
	require.Contains(t, tPage(t, "unix", path, "goroutine?debug=1"), "cmd/lamina.serve+")
	code, _, stderr = tRun(t, "serve", "--config", config, "--pprof", path)
	require.Equal(t, exitInUse, code)
	require.Contains(t, stderr, metadata.ErrLocked.Error(), "a second daemon lacks the root")
	require.Equal(t, exitOK, d.wait(t))
	for _, p := range []string{path, address} {
		if _, err := os.Lstat(p); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s after the stop: %v", p, err)
		}
	}
}
