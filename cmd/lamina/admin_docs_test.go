package main

import (
	"encoding/json"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/metrics"
)

// The table of docs/admin.md is what a daemon serves, with the time that each may take.
func TestAdminDocs(t *testing.T) {
	address := tSocketPath(t)
	a, err := openAdmin(t.Context(), address, adminHandler(&lamina.Host{}, defaultSettings(), &observed{metrics: metrics.New(metrics.Options{})}))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, a.close(t.Context())) })
	status, body := tHTTP(t, address, http.MethodGet, "/")
	require.Equal(t, http.StatusOK, status, body)
	var index struct {
		Endpoints []struct {
			Method, Path string
			Limit        float64
		}
	}
	require.NoError(t, json.Unmarshal([]byte(body), &index), body)
	served := map[string]time.Duration{"GET /": 15 * time.Second} // which does not list itself
	for _, e := range index.Endpoints {
		served[e.Method+" "+strings.ReplaceAll(e.Path, "{name}", "NAME")] = time.Duration(e.Limit * float64(time.Second))
	}

	docs, err := os.ReadFile("../../docs/admin.md")
	require.NoError(t, err)
	told := make(map[string]time.Duration)
	for _, row := range regexp.MustCompile("(?m)^\\| `((?:GET|POST) [^`?]+)[^`]*` \\|.*\\| ([^|]+) \\|$").FindAllStringSubmatch(string(docs), -1) {
		told[row[1]], err = time.ParseDuration(strings.NewReplacer("min", "m", " ", "").Replace(row[2]))
		require.NoError(t, err, row[0])
	}
	require.Equal(t, served, told)
}
