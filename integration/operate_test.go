package integration

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/admin"
)

// operate runs one of the operator's commands for a daemon's root, and decodes what
// it prints as JSON, a value a line.
func operate[T any](t *testing.T, d *daemon, args ...string) (all []T) {
	t.Helper()
	out, err := command(background, nil, append([]string{mustBuild(t, buildLamina)}, append(args, "-o", "json", "--config", d.config())...)...)
	require.NoError(t, err, args)
	for line := range strings.Lines(out) {
		var one T
		require.NoError(t, json.Unmarshal([]byte(line), &one), line)
		all = append(all, one)
	}
	return all
}

// operatePool holds what commands tell of a pool that a daemon serves, and of the
// same pool without one, to each other.
func operatePool(t *testing.T, d *daemon) {
	t.Helper()
	before := operate[admin.Pool](t, d, "pool", "status")[0]
	require.Equal(t, "rw", before.Mode)
	require.NotZero(t, before.Data.Used)
	status := operate[admin.Status](t, d, "status")[0]
	require.True(t, status.Running)
	require.Equal(t, before.Data.Total, status.Backends[0].Pool.Data.Total)
	found := operate[admin.Inspection](t, d, "inspect", "new")[0]
	require.Equal(t, "thin", found.Content.Backend)
	require.NotZero(t, found.Content.Device)
	require.Equal(t, "base", found.Chain[0].Key)
	freed := make(map[string]uint64)
	for _, s := range operate[admin.Space](t, d, "du") {
		freed[s.Key] = s.Freed
	}
	require.GreaterOrEqual(t, freed["base"], freed["new"])
	require.NotZero(t, freed["base"])

	_, err := command(background, nil, mustBuild(t, buildLamina), "pool", "grow", "1TiB", "--config", d.config())
	require.Error(t, err, "the devices have not so much")
	operate[map[string]uint64](t, d, "pool", "trim")
	after := operate[admin.Pool](t, d, "pool", "status")[0]
	require.Equal(t, "rw", after.Mode)
	require.Equal(t, before.Data.Total, after.Data.Total)
	operate[map[string]int](t, d, "cleanup")
}

// operateStopped asks for a pool whose daemon has stopped.
func operateStopped(t *testing.T, d *daemon) {
	t.Helper()
	status := operate[admin.Status](t, d, "status")[0]
	require.False(t, status.Running)
	require.NotNil(t, status.Backends[0].Pool, status.Backends[0].Problem)
	require.NotZero(t, status.Backends[0].Pool.Data.Total)
	require.Equal(t, "thin", operate[admin.Inspection](t, d, "inspect", "new")[0].Content.Backend)
	out, err := command(background, nil, mustBuild(t, buildLamina), "tree", "--config", d.config())
	require.NoError(t, err)
	require.Contains(t, out, "└─base")
}

// TestTop has lamina top draw what a daemon tells, in a terminal.
func TestTop(t *testing.T) {
	requireRoot(t)
	d := startDaemonWith(t, mustTempDir(t), union, union.toml())
	sn, closeIt, err := d.connect(lamina.DefaultName)
	require.NoError(t, err)
	calls := time.NewTicker(5 * time.Millisecond)
	defer calls.Stop()
	ended := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer close(ended)
		for i := 0; ctx.Err() == nil; i++ {
			_, _ = sn.Prepare(ctx, strconv.Itoa(i), "")
			<-calls.C
		}
	}()
	top := exec.CommandContext(t.Context(), "script", "-qec", mustBuild(t, buildLamina)+" top -n 6 -d 300ms --config "+d.config(), "/dev/null")
	top.Env = append(os.Environ(), "TERM=linux")
	_, err = top.StdinPipe() // the end of its input would end it
	require.NoError(t, err)
	out, err := top.Output()
	cancel()
	<-ended
	require.NoError(t, err)
	require.NoError(t, closeIt())
	drawn := regexp.MustCompile(`\x1b\[[0-9;?]*[A-Za-z]`).ReplaceAllString(string(out), "")
	for _, want := range []string{
		`q ends`, `[1-9]\d* active, 0 views`, `disk +[█░]+ +\d+ %`, `CALLS/S +METHOD +SNAPSHOTTER`, `[1-9]\d*\.\d +Prepare +` + lamina.DefaultName,
	} {
		require.Regexp(t, want, drawn)
	}
	d.stop()
}
