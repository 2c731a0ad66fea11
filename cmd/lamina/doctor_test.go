package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/admin"
	"github.com/lamina-snapshotter/lamina/doctor"
	"github.com/lamina-snapshotter/lamina/internal/term"
	"github.com/lamina-snapshotter/lamina/metadata"
)

// A fakeHost finds what the test set it to.
type fakeHost struct {
	findings []doctor.Finding
	err      error
}

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

// tDaemon serves a host's doctor and returns settings of a command that asks it.
func tDaemon(t *testing.T, host examiner) settings {
	t.Helper()
	s := defaultSettings()
	s.Root, s.Admin.Address = "/root/of/daemon", tSocketPath(t)
	a, err := openAdmin(t.Context(), s.Admin.Address, admin.Handler(s.Root, &fakeRoot{}, &fakeRoot{}, doctorEndpoints(host)...))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, a.close(context.Background())) })
	return s
}

// What the daemon finds, and what it could not look at, arrives whole.
func TestAskDoctor(t *testing.T) {
	var want []doctor.Finding
	for i := range 1000 {
		want = append(want, doctor.Finding{Code: doctor.ContentSurplus, Object: fmt.Sprint(i), Holders: []string{"process 1"}})
	}
	s := tDaemon(t, fakeHost{findings: want, err: fmt.Errorf("the volumes: %w", errdefs.ErrUnavailable)})
	var got []doctor.Finding
	locked := func(context.Context, lamina.Config, func(doctor.Finding)) error { return metadata.ErrLocked }
	collect := func(f doctor.Finding) { got = append(got, f) }
	err := look(t.Context(), s, locked, examinePath, collect)
	require.ErrorContains(t, err, "the volumes")
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	require.Equal(t, want, got)

	var usage []doctor.Usage
	err = look(t.Context(), s, func(context.Context, lamina.Config, func(doctor.Usage)) error { return metadata.ErrLocked }, usagePath,
		func(u doctor.Usage) { usage = append(usage, u) })
	require.ErrorContains(t, err, "the volumes")
	require.Equal(t, []doctor.Usage{{Key: "k", Volume: 7, Exclusive: 9}}, usage)

	other := s
	other.Root = "/other"
	require.ErrorContains(t, look(t.Context(), other, locked, examinePath, collect), "the daemon has the root /root/of/daemon, not /other")
	other.Admin.Address += "x"
	err = look(t.Context(), other, locked, examinePath, collect)
	require.ErrorIs(t, err, metadata.ErrLocked)
	require.ErrorContains(t, err, "no daemon answers at "+other.Admin.Address)
	other.Admin.Address = ""
	require.ErrorContains(t, look(t.Context(), other, locked, examinePath, collect), "admin.address is empty")
}

// What a container chose, its keys and the names of its processes, moves no cursor and makes no line.
func TestDoctorPrintsNoEscapes(t *testing.T) {
	finding := doctor.Finding{
		Code: doctor.TrashWaiting, Object: "union/7", Key: "k\x1b[2J", Snapshotter: "lamina", What: "in use\nnothing is wrong",
		Holders: []string{"process 7 (\x1b]0;owned\a\u009b2J)"},
	}
	usage := doctor.Usage{ID: 3, Key: "k\x1b[2J\u202e\x7f", Snapshotter: "lamina"}
	for _, asJSON := range []bool{false, true} {
		for _, what := range []any{finding, usage} {
			var out bytes.Buffer
			require.NoError(t, (&doctorRun{out: &out, json: asJSON, progress: term.NewProgress(io.Discard, "")}).print(what))
			line := strings.TrimSuffix(out.String(), "\n")
			require.Contains(t, line, "k\\")
			for _, r := range line {
				require.True(t, strconv.IsPrint(r), "%q", line)
			}
			if asJSON {
				require.True(t, json.Valid(out.Bytes()))
			}
		}
	}
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
func TestAskDoctorThatHangs(t *testing.T) {
	s := tDaemon(t, hungHost{})
	c, err := s.client()
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, askDoctor(ctx, c, examinePath, func(doctor.Finding) {}), context.DeadlineExceeded)
}

// A hungHost answers when the one who asks has gone.
type hungHost struct{ fakeHost }

func (hungHost) Examine(ctx context.Context, _ func(doctor.Finding)) error {
	<-ctx.Done()
	return ctx.Err()
}

// Ctrl-C at a question is no answer, and is not waited for: a read of a terminal cannot be interrupted.
func TestDoctorAskInterrupted(t *testing.T) {
	in, typist := io.Pipe()
	defer typist.Close()
	var out logBuffer
	d := &doctorRun{progress: term.NewProgress(io.Discard, "")}
	ctx, interrupt := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, interrupt)
	yes, err := d.ask(ctx, &out, bufio.NewReader(in), "Do it?\n\x1b")
	require.ErrorIs(t, err, context.Canceled)
	require.False(t, yes)
	require.Equal(t, []string{`Do it?; \x1b [y/N] `}, out.lines())
	_, err = d.ask(ctx, &out, bufio.NewReader(in), "Do the next?")
	require.ErrorIs(t, err, context.Canceled)
	require.Empty(t, out.lines(), "what follows is not asked")

	for text, want := range map[string]bool{"y\n": true, "Y \n": true, "n\n": false, "\n": false, "yes\n": true, "": false, "y": true} {
		yes, err := d.ask(t.Context(), &out, bufio.NewReader(strings.NewReader(text)), "Do it?")
		require.NoError(t, err)
		require.Equal(t, want, yes, "%q", text)
	}
}

// Ctrl-C while a cure goes on that cannot be cut off: what it has done is told, and that what follows was left.
func TestDoctorCureInterrupted(t *testing.T) {
	refused := errors.New("the first cure failed")
	for _, failed := range []error{nil, refused} {
		ctx, interrupt := context.WithCancel(t.Context())
		var out bytes.Buffer
		d := &doctorRun{out: &out, repair: true, yes: true, progress: term.NewProgress(io.Discard, "")}
		d.mend = func(ctx context.Context, _ lamina.Config, r doctor.Repair) error {
			err := r.Do(ctx, "repair the metadata", func(context.Context) error {
				interrupt()
				r.Say("the volumes [7] are lost")
				return nil
			})
			return errors.Join(failed, err, r.Do(ctx, "start lamina", func(context.Context) error { return nil }))
		}
		err := d.work(ctx)
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, "repair: repair the metadata\nrepair: the volumes [7] are lost\n", out.String())
		require.Equal(t, failed == nil, isOnly(err, context.Canceled, errNotLooked), err)

		d.mend = func(context.Context, lamina.Config, doctor.Repair) error { return nil }
		require.ErrorIs(t, d.work(ctx), context.Canceled, "it came at the end")
	}
}
