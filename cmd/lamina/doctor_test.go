package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/doctor"
)

// A fakeHost finds what the test set it to.
type fakeHost struct {
	findings []doctor.Finding
	err      error
}

func (f fakeHost) Config() lamina.Config { return lamina.Config{Root: "/root/of/daemon"} }

func (f fakeHost) Examine(_ context.Context, found func(doctor.Finding)) error {
	for _, one := range f.findings {
		found(one)
	}
	return f.err
}

func (f fakeHost) Usage(_ context.Context, each func(doctor.Usage)) error {
	each(doctor.Usage{Key: "k", Volume: 7, Exclusive: 9})
	return f.err
}

// tDaemon serves a host's doctor and returns the address.
func tDaemon(t *testing.T, host examiner) string {
	t.Helper()
	logger, _ := tLogger(t, "info")
	s := newServer(newService(logger, map[string]snapshots.Snapshotter{"lamina": &fakeSnapshotter{}}))
	if host != nil {
		registerDoctor(s.grpc, host)
	}
	conn, _ := tServe(t, s)
	return strings.TrimPrefix(conn.Target(), "passthrough:///")
}

// What the daemon finds, and what it could not look at, arrives whole.
func TestAskDaemon(t *testing.T) {
	var want []doctor.Finding
	for i := range 1000 {
		want = append(want, doctor.Finding{Code: doctor.ContentSurplus, Object: fmt.Sprint(i), Holders: []string{"process 1"}})
	}
	host := fakeHost{findings: want, err: fmt.Errorf("the volumes: %w", errdefs.ErrUnavailable)}
	address := tDaemon(t, host)
	var got []doctor.Finding
	collect := func(f doctor.Finding) { got = append(got, f) }
	err := askDaemon(t.Context(), examineMethod, address, "/root/of/daemon", collect)
	require.ErrorContains(t, err, "the volumes")
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	require.Equal(t, want, got)

	var usage []doctor.Usage
	err = askDaemon(t.Context(), usageMethod, address, "/root/of/daemon", func(u doctor.Usage) { usage = append(usage, u) })
	require.ErrorContains(t, err, "the volumes")
	require.Equal(t, []doctor.Usage{{Key: "k", Volume: 7, Exclusive: 9}}, usage)

	require.ErrorContains(t, askDaemon(t.Context(), examineMethod, address, "/other", collect), "the daemon has the root /root/of/daemon, not /other")
	require.Error(t, askDaemon(t.Context(), examineMethod, tDaemon(t, nil), "/root/of/daemon", collect), "a daemon that knows no doctor")
	require.Error(t, askDaemon(t.Context(), examineMethod, address+"x", "/root/of/daemon", collect), "nobody listens")
}

func TestDoctorCommandLine(t *testing.T) {
	config := tFile(t, "root = \""+t.TempDir()+"/none\"\n")
	for _, tc := range []struct {
		args   []string
		code   int
		stderr string
	}{
		{[]string{"--help"}, exitOK, ""},
		{[]string{"--config", config}, exitNotLooked, "no such file"},
		{[]string{"--config", config, "--yes"}, exitUsage, "are for --repair"},
		{[]string{"--config", config, "--usage", "--repair"}, exitUsage, "--usage"},
		{[]string{"--config", config, "--usage"}, exitNotLooked, "no such file"},
		{[]string{"--config", config, "-o", "yaml"}, exitUsage, `"yaml"`},
		{[]string{"--config", config + "x"}, exitConfig, "no such file"},
	} {
		code, stdout, stderr := tRun(t, append([]string{"doctor"}, tc.args...)...)
		require.Equal(t, tc.code, code, "%v: %s%s", tc.args, stdout, stderr)
		require.Contains(t, stderr, tc.stderr)
	}
	require.Equal(t, exitFindings, exitCode(fmt.Errorf("%w: 3", errFindings)))
	require.Equal(t, exitNotLooked, exitCode(errors.Join(errNotLooked, errors.New("why"))))
}

// A daemon that does not answer is not waited for without an end.
func TestAskDaemonThatHangs(t *testing.T) {
	address := tDaemon(t, hungHost{})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := askDaemon(ctx, examineMethod, address, "/root/of/daemon", func(doctor.Finding) {})
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

// A hungHost answers when the one who asks has gone.
type hungHost struct{ fakeHost }

func (hungHost) Examine(ctx context.Context, _ func(doctor.Finding)) error {
	<-ctx.Done()
	return ctx.Err()
}
