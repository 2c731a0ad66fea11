package metrics_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

const (
	rulesFile     = "../contrib/prometheus/lamina.rules.yml"
	rulesTestFile = "../contrib/prometheus/lamina.rules.test.yml"
	dashboardFile = "../contrib/grafana/lamina.json"
	docsFile      = "../docs/metrics.md"
)

// An exported is what a daemon exports: the labels of each metric. A histogram has the names of its series too.
type exported map[string][]string

// tFamilies returns all that a daemon has to export.
func tFamilies(t *testing.T) []*dto.MetricFamily {
	t.Helper()
	m, _ := newMetrics(t, good)
	m.Begin("lamina", "Stat").End("OK")
	families, err := m.Gatherer().Gather()
	require.NoError(t, err)
	return families
}

func labelsOf(f *dto.MetricFamily) (labels []string) {
	for _, l := range f.GetMetric()[0].GetLabel() {
		labels = append(labels, l.GetName())
	}
	return labels
}

func tExported(t *testing.T) exported {
	t.Helper()
	all := exported{}
	for _, f := range tFamilies(t) {
		labels := labelsOf(f)
		all[f.GetName()] = labels
		if f.GetType() == dto.MetricType_HISTOGRAM {
			all[f.GetName()+"_sum"], all[f.GetName()+"_count"] = labels, labels
			all[f.GetName()+"_bucket"] = append(slices.Clone(labels), "le")
		}
	}
	return all
}

var (
	quoted   = regexp.MustCompile(`"(?:[^"\\]|\\.)*"`)
	selector = regexp.MustCompile(`([a-zA-Z_]\w*)\s*\{([^}]*)\}`)
	matcher  = regexp.MustCompile(`(\w+)\s*(?:=~|!~|!=|=)`)
	grouping = regexp.MustCompile(`\b(?:by|without|on|ignoring)\s*\(([^)]*)\)`)
	ours     = regexp.MustCompile(`\b(?:lamina|go|process)_\w+`)
	shown    = regexp.MustCompile(`\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}`)
)

// check reports what an expression of PromQL names that nobody exports, and what the text beside it shows.
func (e exported) check(expr, text string) (problems []string) {
	expr = quoted.ReplaceAllString(expr, `""`)
	known := []string{"job", "instance"} // which Prometheus adds
	for _, name := range ours.FindAllString(expr, -1) {
		labels, ok := e[name]
		if !ok {
			problems = append(problems, name+" is not exported")
		}
		known = append(known, labels...)
	}
	need := func(labels, of []string, where string) {
		for _, l := range labels {
			if !slices.Contains(of, l) {
				problems = append(problems, fmt.Sprintf("%s has no label %q", where, l))
			}
		}
	}
	for _, s := range selector.FindAllStringSubmatch(expr, -1) {
		if labels, ok := e[s[1]]; ok {
			need(firsts(matcher.FindAllStringSubmatch(s[2], -1)), append(labels, "job", "instance"), s[1])
		}
	}
	for _, g := range grouping.FindAllStringSubmatch(expr, -1) {
		need(strings.FieldsFunc(g[1], func(r rune) bool { return r == ',' || r == ' ' }), known, expr)
	}
	need(firsts(shown.FindAllStringSubmatch(text, -1)), known, expr)
	return problems
}

func firsts(matches [][]string) (all []string) {
	for _, m := range matches {
		all = append(all, m[1])
	}
	return all
}

// A query is an expression of the dashboard, and what it shows of the labels.
type query struct {
	where, expr, text string
}

func tDashboard(t *testing.T) (queries []query) {
	t.Helper()
	text, err := os.ReadFile(dashboardFile)
	require.NoError(t, err)
	var d struct {
		Panels []struct {
			Title   string
			Type    string
			Targets []struct{ Expr, LegendFormat string }
		}
		Templating struct {
			List []struct{ Name, Definition string }
		}
		Annotations struct{ List []struct{ Name, Expr string } }
	}
	require.NoError(t, json.Unmarshal(text, &d))
	for _, p := range d.Panels {
		require.True(t, p.Type == "row" || len(p.Targets) > 0, p.Title)
		for _, target := range p.Targets {
			queries = append(queries, query{p.Title, target.Expr, target.LegendFormat})
		}
	}
	for _, v := range d.Templating.List {
		if v.Definition == "" {
			continue
		}
		inner, ok := strings.CutPrefix(v.Definition, "label_values(")
		require.True(t, ok, v.Definition)
		metric, label, ok := strings.Cut(strings.TrimSuffix(inner, ")"), ", ")
		require.True(t, ok, v.Definition)
		queries = append(queries, query{v.Name, metric, "{{" + label + "}}"})
	}
	for _, a := range d.Annotations.List {
		if a.Expr != "" {
			queries = append(queries, query{a.Name, a.Expr, ""})
		}
	}
	require.Greater(t, len(queries), 40)
	return queries
}

// A ruleFile is one of Prometheus's.
type ruleFile struct {
	Groups []ruleGroup `yaml:"groups"`
}

type ruleGroup struct {
	Name  string `yaml:"name"`
	Rules []rule `yaml:"rules"`
}

type rule struct {
	Alert       string            `yaml:"alert,omitempty"`
	Record      string            `yaml:"record,omitempty"`
	Expr        string            `yaml:"expr"`
	Labels      map[string]string `yaml:"labels,omitempty"`
	Annotations map[string]string `yaml:"annotations,omitempty"`
}

func tAlerts(t *testing.T) []rule {
	t.Helper()
	text, err := os.ReadFile(rulesFile)
	require.NoError(t, err)
	var f ruleFile
	require.NoError(t, yaml.Unmarshal(text, &f))
	require.Len(t, f.Groups, 1)
	return f.Groups[0].Rules
}

// The dashboard and the alerts name what is exported, with the labels that it has.
func TestContribNamesWhatIsExported(t *testing.T) {
	all := tExported(t)
	for _, q := range tDashboard(t) {
		require.Empty(t, all.check(q.expr, q.text), q.where)
	}
	for _, a := range tAlerts(t) {
		require.Empty(t, all.check(a.Expr, a.Annotations["summary"]+a.Annotations["runbook"]), a.Alert)
	}
	for expr, problem := range map[string]string{
		`rate(lamina_nothing[5m])`: "lamina_nothing", `lamina_pool_mode{mod="rw"}`: `"mod"`, `sum by (methd) (lamina_operations_total)`: `"methd"`,
		`lamina_pool_mode_bucket`: "lamina_pool_mode_bucket",
	} {
		require.Contains(t, strings.Join(all.check(expr, ""), " "), problem, "this test sees nothing")
	}
}

// Each alert says what to do, is tested, and stands in the documentation.
func TestAlertsAreWhole(t *testing.T) {
	tests, err := os.ReadFile(rulesTestFile)
	require.NoError(t, err)
	docs, err := os.ReadFile(docsFile)
	require.NoError(t, err)
	for _, a := range tAlerts(t) {
		require.NotEmpty(t, a.Annotations["summary"], a.Alert)
		require.NotEmpty(t, a.Annotations["runbook"], a.Alert)
		require.Contains(t, string(tests), fmt.Sprintf("alertname=%q,alertstate=\"firing\",instance=\"bad\"", a.Alert))
		require.Contains(t, string(docs), fmt.Sprintf("| `%s` | %s | %s |\n", a.Alert, a.Labels["severity"], a.Annotations["runbook"]))
	}
}

// promtool runs Prometheus's own checks, of which setup fetches the program.
func promtool(t *testing.T, args ...string) {
	t.Helper()
	program := "../bin/tools/promtool"
	if _, err := os.Stat(program); err != nil {
		if os.Getenv("LAMINA_TEST_ROOT") == "1" {
			t.Fatalf("%v: run integration/setup promtool", err)
		}
		t.Skipf("%v: integration/setup promtool fetches it", err)
	}
	out, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput()
	require.NoError(t, err, "promtool %q: %s", args, out)
}

func TestRulesByPromtool(t *testing.T) {
	promtool(t, "check", "rules", rulesFile)
	promtool(t, "test", "rules", rulesTestFile)
}

// What the dashboard asks is PromQL: as rules, promtool reads it.
func TestDashboardByPromtool(t *testing.T) {
	variables := strings.NewReplacer("$__rate_interval", "5m", "$job", "lamina", "$instance", ".*", "$snapshotter", ".*")
	var g ruleGroup
	g.Name = "dashboard"
	for i, q := range tDashboard(t) {
		expr := variables.Replace(q.expr)
		require.NotContains(t, expr, "$", q.where)
		g.Rules = append(g.Rules, rule{Record: fmt.Sprint("dashboard:", i), Expr: expr})
	}
	text, err := yaml.Marshal(ruleFile{Groups: []ruleGroup{g}})
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "rules.yml")
	require.NoError(t, os.WriteFile(path, text, 0o600))
	promtool(t, "check", "rules", path)
}

// The table of the documentation is what is exported.
func TestDocs(t *testing.T) {
	var table strings.Builder
	for _, f := range tFamilies(t) {
		if !strings.HasPrefix(f.GetName(), "lamina_") {
			continue
		}
		labels := "–"
		if all := labelsOf(f); len(all) > 0 {
			labels = "`" + strings.Join(all, "`, `") + "`"
		}
		fmt.Fprintf(&table, "| `%s` | %s | %s | %s |\n", f.GetName(), strings.ToLower(f.GetType().String()), labels, f.GetHelp())
	}
	docs, err := os.ReadFile(docsFile)
	require.NoError(t, err)
	if !strings.Contains(string(docs), table.String()) {
		t.Errorf("%s lacks this table:\n%s", docsFile, table.String())
	}
}
