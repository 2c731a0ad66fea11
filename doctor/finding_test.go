package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// allCodes returns the values of the constants that are codes, as they stand in the source.
func allCodes(t *testing.T) (codes []Code) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "finding.go", nil, 0)
	require.NoError(t, err)
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || spec.Type == nil {
			return true
		}
		if name, ok := spec.Type.(*ast.Ident); ok && name.Name == "Code" {
			lit, ok := spec.Values[0].(*ast.BasicLit)
			require.True(t, ok)
			value, err := strconv.Unquote(lit.Value)
			require.NoError(t, err)
			codes = append(codes, Code(value))
		}
		return true
	})
	return codes
}

// Each code says what it means and what cures it, and the operator's page has it.
func TestEveryCodeIsExplained(t *testing.T) {
	page, err := os.ReadFile("../docs/operating.md")
	require.NoError(t, err)
	codes := allCodes(t)
	require.Len(t, codes, len(remedies))
	for _, code := range codes {
		f := finding(code, "x", "y")
		require.NotEmpty(t, f.Meaning, code)
		require.NotEmpty(t, f.Advice, code)
		require.NotEmpty(t, f.Cure, code)
		require.True(t, strings.Contains(string(page), "`"+string(code)+"`"), "docs/operating.md lacks %s", code)
	}
}

// The JSON of a finding is stable: programs read it.
func TestFindingsAsJSON(t *testing.T) {
	f := finding(ContentLost, "volume 7", "the pool does not have it")
	f.ID, f.Snapshotter, f.Key, f.Holders = 12, "lamina", "layer", []string{"process 1"}
	var got strings.Builder
	enc := json.NewEncoder(&got)
	require.NoError(t, enc.Encode(f))
	require.NoError(t, enc.Encode(finding(LoopDouble, "/dev/loop3", "another loop device has the same file, /x")))
	golden, err := os.ReadFile("testdata/findings.json")
	require.NoError(t, err)
	require.Equal(t, string(golden), got.String())
	var back Finding
	require.NoError(t, json.Unmarshal([]byte(strings.SplitN(got.String(), "\n", 2)[0]), &back))
	require.Equal(t, f, back)
	require.Equal(t, "content-lost: volume 7 (lamina, layer): the pool does not have it (it is damage: containers on it do not start). "+
		"Cure: "+lossAdvice+". Held by: process 1.", f.String())
}

// A repair announces before it asks, asks before it acts, and goes on after what was declined or failed.
func TestRepairAsks(t *testing.T) {
	var log []string
	failing := finding(LoopDeleted, "/dev/loop1", "a")
	failing.cure = func(context.Context) error { log = append(log, "cure 1"); return errors.New("no") }
	declined := finding(LoopDouble, "/dev/loop2", "b")
	declined.cure = func(context.Context) error { log = append(log, "cure 2"); return nil }
	missing := finding(ContentMissing, "/dir", "c")
	missing.Snapshotter, missing.Key = "lamina", "k"
	r := Repair{
		Findings: []Finding{failing, declined, finding(PlaceStray, "/stray", "d"), missing, finding(ContentLost, "e", "f")},
		Say:      func(text string) { log = append(log, strings.SplitN(text, ":", 2)[0]) },
		Ask:      func(string) (bool, error) { log = append(log, "?"); return len(log) < 4 || len(log) > 5, nil },
		Unlock:   func() error { log = append(log, "unlock"); return nil },
		Start: func(_ context.Context, mount [][2]string) error {
			require.Equal(t, [][2]string{{"lamina", "k"}}, mount)
			log = append(log, "start")
			return nil
		},
	}
	require.ErrorContains(t, r.Run(t.Context()), "/dev/loop1")
	require.Equal(t, []string{
		"loop-deleted", "?", "cure 1", "loop-double", "?", "place-stray", "unlock",
		"content-missing", "start lamina on the root and stop it again, which cures these 1", "?", "start",
	}, log)

	log, r.DryRun = nil, true
	require.NoError(t, r.Run(t.Context()))
	require.NotContains(t, log, "?")
	require.NotContains(t, log, "start")
	require.NotContains(t, log, "cure 1")
}
