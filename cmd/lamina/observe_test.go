package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/metadata"
	"github.com/lamina-snapshotter/lamina/metrics"
)

// tScrape gets the metrics that are served on a socket.
func tScrape(t *testing.T, path string) string {
	t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://lamina/metrics", http.NoBody)
	require.NoError(t, err)
	reply, err := transport.RoundTrip(r)
	require.NoError(t, err)
	defer func() { _ = reply.Body.Close() }()
	text, err := io.ReadAll(reply.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, reply.StatusCode, "%s", text)
	return string(text)
}

// Calls are counted by what came of them.
func TestCallsAreCounted(t *testing.T) {
	logger, _ := tLogger(t, "info")
	s := newService(logger, map[string]snapshots.Snapshotter{"lamina": &fakeSnapshotter{err: errdefs.ErrResourceExhausted}})
	s.metrics = metrics.New(metrics.Options{Snapshotters: []string{"lamina"}})
	conn, _ := tServe(t, newServer(s))
	_, err := mustProxy(conn, "lamina").Prepare(t.Context(), "k", "")
	require.Error(t, err)
	require.Error(t, mustProxy(conn, "lamina").Walk(t.Context(), func(context.Context, snapshots.Info) error { return nil }))
	_, err = mustProxy(conn, "made up").Stat(t.Context(), "k")
	require.Error(t, err)
	counted := map[string]float64{}
	families, err := s.metrics.Gatherer().Gather()
	require.NoError(t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetValue())
			}
			if f.GetName() == "lamina_operations_total" && m.GetCounter().GetValue() > 0 {
				counted[strings.Join(labels, " ")] = m.GetCounter().GetValue()
			}
		}
	}
	require.Equal(t, map[string]float64{
		"ResourceExhausted Prepare lamina": 1, "ResourceExhausted List lamina": 1, "InvalidArgument Stat (other)": 1,
	}, counted)
}

func TestServeMetrics(t *testing.T) {
	needRoot(t)
	path, address, root := tSocketPath(t), tSocketPath(t), filepath.Join(t.TempDir(), "root")
	configure := func(root, address, metrics string) string {
		return tFile(t, "root = \""+root+"\"\naddress = \""+address+"\"\n[metrics]\naddress = \""+metrics+"\"\n")
	}
	config := configure(root, address, path)
	d := startDaemon(t, "--config", config)
	sn := tProxy(t, d, address, "lamina")
	_, err := sn.Prepare(t.Context(), "k", "")
	require.NoError(t, err)
	require.NoError(t, sn.Commit(t.Context(), "layer", "k"))
	for _, at := range []string{path, filepath.Join(filepath.Dir(address), adminName)} {
		text := tScrape(t, at)
		for _, want := range []string{
			"lamina_status_success 1", `lamina_operations_total{class="OK",method="Prepare",snapshotter="lamina"} 1`,
			`lamina_snapshots{backend="union",kind="committed",snapshotter="lamina"} 1`, `lamina_disk_used_bytes{backend="union"}`,
			"lamina_store_flush_duration_seconds_count", "process_open_fds", "go_goroutines",
		} {
			require.Contains(t, text, want, at)
		}
	}

	code, _, stderr := tRun(t, "serve", "--config", config)
	require.Equal(t, exitInUse, code)
	require.Contains(t, stderr, metadata.ErrLocked.Error(), "a second daemon lacks the root, and the address besides")
	other := filepath.Join(t.TempDir(), "other")
	code, _, stderr = tRun(t, "serve", "--config", configure(other, tSocketPath(t), path))
	require.Equal(t, exitInUse, code)
	require.Contains(t, stderr, "metrics.address: ")
	require.NoDirExists(t, other, "it is said before the root is opened")
	code, _, stderr = tRun(t, "serve", "--config", config, "--root", other, "--address", tSocketPath(t), "--pprof", path)
	require.Equal(t, exitConfig, code, stderr)
	require.Equal(t, exitOK, d.wait(t))
	_, err = net.Dial("unix", path)
	require.Error(t, err, "it ends with the daemon")
}
