package metrics_test

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/gauge"
	"github.com/grafana/grafana-foundation-sdk/go/heatmap"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
	"github.com/stretchr/testify/require"
)

// readDashboard reads a dashboard by Grafana's own types: nothing that it needs is missing, and nothing there that it does not know.
func readDashboard(text []byte) (*dashboard.Dashboard, error) {
	kinds := cog.NewRuntime()
	kinds.RegisterDataqueryVariant(prometheus.VariantConfig())
	kinds.RegisterPanelcfgVariant(gauge.VariantConfig())
	kinds.RegisterPanelcfgVariant(heatmap.VariantConfig())
	kinds.RegisterPanelcfgVariant(stat.VariantConfig())
	kinds.RegisterPanelcfgVariant(timeseries.VariantConfig())
	var d dashboard.Dashboard
	if err := d.UnmarshalJSONStrict(text); err != nil {
		return nil, err
	}
	return &d, d.Validate()
}

// typed gives the dashboard without the titles of annotations, which the Prometheus data source reads and the types do not have.
func typed(t *testing.T) []byte {
	t.Helper()
	text, err := os.ReadFile(dashboardFile)
	require.NoError(t, err)
	var d map[string]any
	require.NoError(t, json.Unmarshal(text, &d))
	for _, a := range d["annotations"].(map[string]any)["list"].([]any) {
		delete(a.(map[string]any), "titleFormat")
	}
	text, err = json.Marshal(d)
	require.NoError(t, err)
	return text
}

func TestDashboardByGrafanasTypes(t *testing.T) {
	text := string(typed(t))
	d, err := readDashboard([]byte(text))
	require.NoError(t, err)
	ids := map[uint32]bool{}
	for _, p := range d.Panels {
		if p.Panel == nil { // a row
			continue
		}
		require.False(t, ids[*p.Panel.Id], "two panels have the id %d", *p.Panel.Id)
		ids[*p.Panel.Id] = true
		require.LessOrEqual(t, p.Panel.GridPos.X+p.Panel.GridPos.W, uint32(24), *p.Panel.Title)
	}
	for was, is := range map[string]string{
		`"showLegend":true`: `"showLegends":true`, `"editable":true`: `"editable":"yes"`, `"orientation":"auto",`: ``,
	} {
		require.Contains(t, text, was)
		_, err := readDashboard([]byte(strings.ReplaceAll(text, was, is)))
		require.Error(t, err, "%s is taken", is)
	}
}
