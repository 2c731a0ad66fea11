package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina"
)

// Features are printed as root and as anybody else, and the directory that the root will be made in stays as it is.
func TestFeatures(t *testing.T) {
	dir := t.TempDir()
	args := []string{"features", "--config", tFile(t, ""), "--root", filepath.Join(dir, "lamina")}
	code, text, stderr := tRun(t, args...)
	require.Equal(t, exitOK, code, stderr)
	require.Contains(t, text, "DRIVER")

	code, lines, stderr := tRun(t, append(args, "-o", "json")...)
	require.Equal(t, exitOK, code, stderr)
	printed := strings.Split(strings.TrimSpace(text), "\n")[1:]
	for scanner := bufio.NewScanner(strings.NewReader(lines)); scanner.Scan(); {
		var l featureLine
		require.NoError(t, json.Unmarshal(scanner.Bytes(), &l))
		require.Contains(t, []string{"yes", "no", "unknown"}, l.Here)
		require.Equal(t, l.Here != "yes", l.Reason != "", l)
		require.NotEmpty(t, printed, "the table has fewer rows")
		require.Equal(t, strings.Fields(fmt.Sprintln(l.Driver, l.Name, l.Here)),
			strings.Fields(printed[0])[:1+len(strings.Fields(l.Name))+1])
		printed = printed[1:]
	}
	require.Empty(t, printed, "the table has more rows")
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)

	code, _, stderr = tRun(t, append(args, "-o", "xml")...)
	require.Equal(t, exitUsage, code)
	require.Contains(t, stderr, "xml")
}

func TestFeatureLine(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want featureLine
	}{
		{nil, featureLine{Driver: "d", Name: "n", Here: "yes", Detail: "so"}},
		{errors.New("why"), featureLine{Driver: "d", Name: "n", Here: "no", Reason: "why"}},
		{lamina.ErrUntried, featureLine{Driver: "d", Name: "n", Here: "unknown", Reason: lamina.ErrUntried.Error()}},
	} {
		require.Equal(t, tc.want, newFeatureLine(lamina.Feature{Driver: "d", Name: "n", Detail: "so", Err: tc.err}))
	}
}
