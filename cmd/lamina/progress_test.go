package main

import (
	"context"
	"io"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/admin"
	"github.com/lamina-snapshotter/lamina/doctor"
	"github.com/lamina-snapshotter/lamina/internal/term"
)

// A slowRoot takes until the one who asks has gone.
type slowRoot struct {
	hungRoot
	hungHost

	added chan struct{}
}

// AddDevice goes on without the one who asks.
func (s *slowRoot) AddDevice(context.Context, string) error {
	<-s.added
	return nil
}

func (*slowRoot) Usage(ctx context.Context, _ func(doctor.Usage)) error {
	<-ctx.Done()
	return ctx.Err()
}

// What takes longer than a second says so on the terminal, and nothing is left of that after Ctrl-C.
func TestProgressOnTerminal(t *testing.T) {
	t.Setenv("TERM", "xterm")
	root, address := tLockedRoot(t), tSocketPath(t)
	f := &slowRoot{hungRoot: hungRoot{asked: make(chan struct{}, 8)}, added: make(chan struct{})}
	a, err := openAdmin(t.Context(), address, admin.Handler(root, f, f, doctorEndpoints(f)...))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, a.close(context.Background())) })
	t.Cleanup(func() { close(f.added) })
	config := tFile(t, "")
	var checks []func()
	for _, tc := range []struct{ line, says string }{
		{"doctor", "examining"},
		{"doctor --usage", "measuring volumes"},
		{"pool add /dev/none", "adding the device"},
		{"du", "measuring snapshots"},
		{"pool trim", "trimming"},
		{"du -o json", ""},
		{"doctor -o json", ""},
	} {
		terminal, seen, _ := tTerminal(t)
		var stdout logBuffer
		ctx, interrupt := context.WithCancel(t.Context())
		code := make(chan int, 1)
		go func() {
			args := append([]string{"lamina"}, strings.Fields(tc.line)...)
			code <- run(ctx, append(args, "--root", root, "--admin-address", address, "--config", config), &stdout, terminal)
		}()
		shows := func(what string, is func(string) bool) {
			require.Eventually(t, func() bool { return is(seen.text()) }, 10*time.Second, 5*time.Millisecond, "%s: %s", tc.line, what)
		}
		checks = append(checks, func() {
			erased := ""
			if tc.says != "" {
				erased = "\r\x1b[K"
				shows(tc.says, regexp.MustCompile("\r\x1b\\[K"+tc.says+" for [0-9]+ s").MatchString)
			}
			interrupt()
			require.Equal(t, exitInterrupted, <-code, tc.line)
			want := erased + "lamina: interrupted\r\n"
			shows(want, func(text string) bool { return strings.HasSuffix(text, want) })
			require.Equal(t, tc.says == "", seen.text() == want, "%s: %q", tc.line, seen.text())
			require.Empty(t, stdout.lines())
		})
	}
	for _, check := range checks {
		check()
	}
}

// Beside JSON nothing is told when it would be, and what is logged stays where it was.
func TestNoProgressBesideJSON(t *testing.T) {
	t.Setenv("TERM", "xterm")
	for _, json := range []bool{false, true} {
		terminal, seen, _ := tTerminal(t)
		logger := logrus.New()
		logger.SetOutput(io.Discard)
		p := newProgress(log.WithLogger(t.Context(), logrus.NewEntry(logger)), terminal, json, "looking")
		require.Equal(t, !json, logger.Out == io.Writer(p))
		told := make(chan struct{})
		require.NoError(t, during(p, func(p *term.Progress) {
			p.Elapsed()
			close(told)
		}, func() error {
			<-told
			return nil
		}))
		_, err := io.WriteString(terminal, "the end")
		require.NoError(t, err)
		require.Eventually(t, func() bool { return strings.HasSuffix(seen.text(), "the end") }, 10*time.Second, time.Millisecond)
		require.Equal(t, json, seen.text() == "the end", "%q", seen.text())
	}
}
