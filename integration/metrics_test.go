package integration

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/integration/guest"
)

// TestMetrics holds what a daemon exports to the documentation, which tests of
// package metrics hold the dashboard and the alerts to; and to promtool.
func TestMetrics(t *testing.T) {
	requireRoot(t)
	page := testMetrics(t, union, union.toml(), "lamina_pool_")
	check := exec.CommandContext(t.Context(), mustHave(t, "bin/tools/promtool"), "check", "metrics")
	check.Stdin = bytes.NewReader(page)
	said, err := check.CombinedOutput()
	require.NoError(t, err, "%s", said)
	require.Empty(t, string(said))
}

// TestThinMetrics is that with a pool. Only of one that has filled for a while
// it is known when it is full.
func TestThinMetrics(t *testing.T) {
	guest.Require(t)
	both := "[snapshotters.lamina]\n[snapshotters.thin]\nbackend = \"thin\"\n[thin]\ndata_size = \"2GiB\"\n"
	page := testMetrics(t, thinExt4, both, "lamina_pool_data_rate_", "lamina_pool_time_to_full_")
	for _, want := range []string{
		`lamina_pool_mode{mode="rw"} 1`, "lamina_pool_needs_check 0", `lamina_backend_usable{backend="thin"} 1`,
		`lamina_snapshots{backend="thin",kind="active",snapshotter="thin"} 1`, "lamina_pool_data_size_bytes 2.147483648e+09",
	} {
		require.Contains(t, string(page), want)
	}
}

// testMetrics has a daemon work for all its names, and compares what it exports
// with the documented table, but for what begins so, which may be missing.
func testMetrics(t *testing.T, b backend, toml string, missing ...string) []byte {
	t.Helper()
	dir := mustTempDir(t)
	address := filepath.Join(dir, "metrics.sock")
	d := startDaemonWith(t, dir, b, toml+fmt.Sprintf("\n[metrics]\naddress = %q\n", address))
	names := []string{"lamina"}
	if strings.Contains(toml, "snapshotters.thin") {
		names = append(names, "thin")
	}
	for _, name := range names {
		sn, closeIt, err := d.connect(name)
		require.NoError(t, err)
		_, err = sn.Prepare(t.Context(), "k", "")
		require.NoError(t, err)
		require.NoError(t, closeIt())
	}
	page := scrape(t, address)
	text, err := os.ReadFile(filepath.Join(repository(t), "docs/metrics.md"))
	require.NoError(t, err)
	var documented []string
	for _, row := range regexp.MustCompile("(?m)^\\| `(lamina_\\w+)` \\| (\\w+) \\| (.*?) \\|").FindAllStringSubmatch(string(text), -1) {
		may := slices.ContainsFunc(missing, func(begin string) bool { return strings.HasPrefix(row[1], begin) })
		if !may || bytes.Contains(page, []byte("\n"+row[1])) {
			documented = append(documented, strings.Join(row[1:], " "))
		}
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(page))
	require.NoError(t, err)
	var exported []string
	for name, f := range families {
		if strings.HasPrefix(name, "lamina_") {
			exported = append(exported, strings.Join([]string{name, strings.ToLower(f.GetType().String()), labelNames(f)}, " "))
		}
	}
	slices.Sort(exported)
	require.Equal(t, documented, exported)
	d.stop()
	return page
}

// labelNames are the labels of a metric, as the documentation has them.
func labelNames(f *dto.MetricFamily) string {
	var names []string
	for _, l := range f.GetMetric()[0].GetLabel() {
		names = append(names, "`"+l.GetName()+"`")
	}
	if len(names) == 0 {
		return "–"
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

func scrape(t *testing.T, socket string) []byte {
	t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://lamina/metrics", http.NoBody)
	require.NoError(t, err)
	reply, err := transport.RoundTrip(r)
	require.NoError(t, err)
	defer reply.Body.Close()
	page, err := io.ReadAll(reply.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, reply.StatusCode, "%s", page)
	return page
}
