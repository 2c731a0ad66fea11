package main

import (
	"context"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/log"
	"github.com/stretchr/testify/require"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

func mustProxy(conn *grpc.ClientConn, name string) snapshots.Snapshotter {
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), name)
}

// A collector takes traces as OTLP over HTTP.
type collector struct {
	*httptest.Server

	mu    sync.Mutex
	spans []*tracepb.Span
}

func startCollector(t *testing.T) *collector {
	t.Helper()
	c := &collector{}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var request coltracepb.ExportTraceServiceRequest
		if r.URL.Path != "/v1/traces" || err != nil || proto.Unmarshal(body, &request) != nil {
			http.Error(w, "no traces", http.StatusBadRequest)
			return
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, resource := range request.GetResourceSpans() {
			for _, scope := range resource.GetScopeSpans() {
				c.spans = append(c.spans, scope.GetSpans()...)
			}
		}
	}))
	t.Cleanup(c.Close)
	return c
}

// of returns the spans of a trace by their names.
func (c *collector) of(trace string) map[string]*tracepb.Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	byName := map[string]*tracepb.Span{}
	for _, s := range c.spans {
		if hex.EncodeToString(s.GetTraceId()) == trace {
			byName[s.GetName()] = s
		}
	}
	return byName
}

// A call continues the trace of its caller, and tells what it waited for.
func TestTraces(t *testing.T) {
	needRoot(t)
	c := startCollector(t)
	root, address := filepath.Join(t.TempDir(), "root"), tSocketPath(t)
	d := startDaemon(t, "--config", tFile(t, "root = \""+root+"\"\naddress = \""+address+"\"\n[tracing]\nendpoint = \""+c.URL+"\"\n"))
	sn := tProxy(t, d, address, "lamina")
	const trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", "00-"+trace+"-"+parent+"-01")
	_, err := sn.Prepare(ctx, "k", "")
	require.NoError(t, err)
	const unsampled = "4bf92f3577b34da6a3ce929d0e0e4737"
	ctx = metadata.AppendToOutgoingContext(t.Context(), "traceparent", "00-"+unsampled+"-"+parent+"-00")
	_, err = sn.Stat(ctx, "k")
	require.NoError(t, err)
	require.Equal(t, exitOK, d.wait(t)) // which sends what is left

	spans := c.of(trace)
	call := spans["containerd.services.snapshots.v1.Snapshots/Prepare"]
	require.NotNil(t, call, "%v", spans)
	require.Equal(t, parent, hex.EncodeToString(call.GetParentSpanId()))
	for _, part := range []string{"backend make", "backend mounts", "store commit"} {
		require.NotNil(t, spans[part], "%s of %v", part, spans)
		require.Equal(t, call.GetSpanId(), spans[part].GetParentSpanId(), part)
	}
	require.Empty(t, c.of(unsampled), "who is not traced is not")
}

// A collector that is not there, or does not answer, holds up neither calls nor the stop.
func TestTracesHoldUpNothing(t *testing.T) {
	silent := make(chan struct{})
	hangs := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // so that the server sees the client go
		select {
		case <-silent:
		case <-r.Context().Done():
		}
	}))
	defer hangs.Close()
	defer close(silent)
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	for name, endpoint := range map[string]string{"gone": gone.URL, "hangs": hangs.URL} {
		t.Run(name, func(t *testing.T) {
			logger, logged := tLogger(t, "info")
			tr, err := openTracer(log.WithLogger(t.Context(), logger), endpoint)
			require.NoError(t, err)
			conn, stop := tServe(t, newServer(newService(logger, map[string]snapshots.Snapshotter{
				"lamina": &fakeSnapshotter{infos: []snapshots.Info{{Name: "k"}}},
			}), tr.options()...))
			sn := mustProxy(conn, "lamina")
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			begun := time.Now()
			for range 5000 { // more than the tracer keeps
				_, span := tr.provider.Tracer("").Start(ctx, "span")
				span.End()
			}
			for range 50 {
				_, err := sn.Stat(ctx, "k")
				require.NoError(t, err)
			}
			require.Less(t, time.Since(begun), exportTime, "nobody waits for one export")
			require.NoError(t, stop())
			start := time.Now()
			tr.close(log.WithLogger(t.Context(), logger))
			require.Less(t, time.Since(start), flushTime+3*time.Second)
			require.NotEmpty(t, logged.lines(), "it is said that traces are lost")
		})
	}
}

// Without a collector the server is as it was.
func TestTracingOff(t *testing.T) {
	tr, err := openTracer(t.Context(), "")
	require.NoError(t, err)
	require.Nil(t, tr)
	require.Empty(t, tr.options())
	tr.close(t.Context())
}
