package main

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/overlayaufs"
)

func TestMigrateCommandLine(t *testing.T) {
	config := tFile(t, "root = \""+t.TempDir()+"/none\"\n")
	for _, tc := range []struct {
		args   []string
		code   int
		stderr string
	}{
		{[]string{"--help"}, exitOK, ""},
		{[]string{"--config", config}, exitUsage, "--from and --to"},
		{[]string{"--config", config, "--from", "aufs"}, exitUsage, "--from and --to"},
		{[]string{"--config", config, "--from", "aufs", "--to", "aufs"}, exitUsage, "the same"},
		{[]string{"--config", config, "--from", "aufs", "--to", "btrfs"}, exitUsage, `"btrfs"`},
		{[]string{"--config", config, "--from", "aufs", "--to", "overlay", "now"}, exitUsage, `"now"`},
		{[]string{"--config", config, "--from", "aufs", "--to", "overlay"}, exitFailure, "no such file"},
		{[]string{"--config", config + "x", "--from", "aufs", "--to", "overlay"}, exitConfig, "no such file"},
	} {
		code, stdout, stderr := tRun(t, append([]string{"migrate"}, tc.args...)...)
		require.Equal(t, tc.code, code, "%v: %s%s", tc.args, stdout, stderr)
		require.Contains(t, stderr, tc.stderr)
	}
}

// Lines are told now and then, and at the end; a terminal has one line for each part.
func TestMeter(t *testing.T) {
	progress := func(m *meter, looking bool) {
		for done := 1; done <= 3; done++ {
			m.show(overlayaufs.Progress{Looking: looking, Layers: 3, Done: done, Counts: overlayaufs.Counts{Entries: 10 * done}})
		}
	}
	var out bytes.Buffer
	now := time.Unix(1000, 0)
	m := &meter{out: &out, now: func() time.Time { now = now.Add(3 * time.Second); return now }, last: now}
	progress(m, true)
	progress(m, false)
	m.end()
	require.Equal(t, "looked at 2 of 3 layers, 20 files and directories\nlooked at 3 of 3 layers, 30 files and directories\n"+
		"translated 2 of 3 layers, 20 files and directories\ntranslated 3 of 3 layers, 30 files and directories\n", out.String())

	out.Reset()
	m = &meter{out: &out, terminal: true, now: m.now}
	progress(m, true)
	m.show(overlayaufs.Progress{Layers: 3, Done: 1})
	m.end()
	require.Equal(t, "\r\x1b[Klooked at 1 of 3 layers, 10 files and directories\r\x1b[Klooked at 2 of 3 layers, 20 files and directories"+
		"\r\x1b[Klooked at 3 of 3 layers, 30 files and directories\n\r\x1b[Ktranslated 1 of 3 layers, 0 files and directories\n", out.String())
}

func TestMigrateWarns(t *testing.T) {
	require.Empty(t, warning(overlayaufs.Outcome{}))
	long := overlayaufs.Chains{Count: 3, Longest: 200, Limit: 127}
	require.Empty(t, warning(overlayaufs.Outcome{Already: true, TooLong: long}))
	require.Contains(t, warning(overlayaufs.Outcome{TooLong: long}), "3 of the snapshots have chains of more than 127 layers, the longest of 200")
}
