package integration

import (
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"
)

// A span is what a test looks at of one.
type span struct {
	service, name     string
	trace, id, parent string
}

// A collector keeps the spans that it is sent, as OTLP over HTTP.
type collector struct {
	*httptest.Server

	mu    sync.Mutex
	spans []span
}

func startCollector(t *testing.T) *collector {
	t.Helper()
	c := &collector{}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var request coltracepb.ExportTraceServiceRequest
		if err != nil || proto.Unmarshal(body, &request) != nil {
			http.Error(w, "no traces", http.StatusBadRequest)
			return
		}
		c.take(&request)
	}))
	t.Cleanup(c.Close)
	return c
}

func (c *collector) take(r *coltracepb.ExportTraceServiceRequest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, from := range r.GetResourceSpans() {
		service := ""
		for _, a := range from.GetResource().GetAttributes() {
			if a.GetKey() == "service.name" {
				service = a.GetValue().GetStringValue()
			}
		}
		for _, scope := range from.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				c.spans = append(c.spans, span{
					service: service, name: s.GetName(), trace: hex.EncodeToString(s.GetTraceId()),
					id: hex.EncodeToString(s.GetSpanId()), parent: hex.EncodeToString(s.GetParentSpanId()),
				})
			}
		}
	}
}

// find returns the span of a service for which is holds.
func (c *collector) find(t *testing.T, service string, is func(span) bool) span {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.spans {
		if s.service == service && is(s) {
			return s
		}
	}
	t.Fatalf("there is no such span of %s in %+v", service, c.spans)
	return span{}
}

// TestTraces follows a call from containerd, which traces, into Lamina.
func TestTraces(t *testing.T) {
	requireRoot(t)
	c := startCollector(t)
	n := &node{t: t, dir: mustTempDir(t), snapshotter: "lamina", traces: c.URL}
	toml := union.toml() + n.contentStore() + fmt.Sprintf("[tracing]\nendpoint = %q\n", c.URL)
	n.daemon = startDaemonWith(t, filepath.Join(n.dir, "lamina"), union, toml)
	n.startBeside(containerd2)
	n.ctr("snapshots", "--snapshotter", "lamina", "prepare", "k")
	n.ctr("snapshots", "--snapshotter", "lamina", "rm", "k")
	n.containerd.stop() // which sends what it still has
	n.daemon.stop()

	const method = "containerd.services.snapshots.v1.Snapshots/Prepare"
	call := c.find(t, "lamina", func(s span) bool { return s.name == method })
	caller := c.find(t, "containerd", func(s span) bool { return s.id == call.parent })
	require.Equal(t, caller.trace, call.trace)
	c.find(t, "containerd", func(s span) bool { return s.trace == call.trace && s.parent == "" })
	for _, part := range []string{"backend make", "store commit"} {
		c.find(t, "lamina", func(s span) bool { return s.name == part && s.trace == call.trace && s.parent == call.id })
	}
}
