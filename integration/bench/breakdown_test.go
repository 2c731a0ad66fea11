package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Without the ioctls alone thin has no limit, and so no target; a difference below zero stays what it is.
func TestBreakdownWithoutLimit(t *testing.T) {
	b := breakdown{Timed: map[string]spread{
		throughSocket: {Median: 900}, withoutSocket: {Median: 1000}, storeAlone: {Median: 600},
		flushAlone: {Median: 300}, emptyCall: {Median: 100}, renameAlone: {Median: 10},
	}}
	b.share(thin)
	require.Empty(t, b.targets(settings{}))
	require.Equal(t, share{Part: "transport", Ours: -100, Of: emptyCall, Limit: 100, Times: -1}, b.Shares[2])
	var out strings.Builder
	require.NoError(t, b.table(&out))
	require.Contains(t, out.String(), "not measured")

	b.Timed[requestsAlone] = spread{Median: 200, Times: 50}
	b.share(thin)
	require.Equal(t, []target{newTarget(b.targets(settings{})[0].What, ofLimit, 900.0/600, times)}, b.targets(settings{}))
}

// Of another program's median nothing else is known, and nothing else is said.
func TestRequestsHaveNoQuartiles(t *testing.T) {
	got, err := timeRequests(t.Context(), mustScript(t, "echo 'BenchmarkVolumeLife 50 1 ns/op 12.5 prepare-µs'"))
	require.NoError(t, err)
	require.Equal(t, spread{Median: 12500 * time.Nanosecond, Times: 50}, got)
	text, err := json.Marshal(got)
	require.NoError(t, err)
	require.JSONEq(t, `{"median_ns": 12500, "times": 50}`, string(text))

	_, err = timeRequests(t.Context(), mustScript(t, "echo nothing"))
	require.ErrorContains(t, err, "says nothing of prepare-µs")
}

func mustScript(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "script")
	require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o700))
	return path
}
