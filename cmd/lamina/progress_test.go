package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/admin"
	"github.com/lamina-snapshotter/lamina/doctor"
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
	var checks []func()
	for _, tc := range []struct{ line, says string }{
		{"doctor", "\r\x1b[Kexamining for 1 s"},
		{"doctor --usage", "\r\x1b[Kmeasuring volumes for 1 s"},
		{"pool add /dev/none", "\r\x1b[Kadding the device for 1 s"},
		{"du", "\r\x1b[Kmeasuring snapshots for 1 s"},
		{"pool trim", "\r\x1b[Ktrimming for 1 s"},
		{"du -o json", ""},
		{"doctor -o json", ""},
	} {
		terminal, seen, _ := tTerminal(t)
		var stdout logBuffer
		ctx, interrupt := context.WithCancel(t.Context())
		code := make(chan int, 1)
		go func() {
			args := append([]string{"lamina"}, strings.Fields(tc.line)...)
			code <- run(ctx, append(args, "--root", root, "--admin-address", address, "--config", tFile(t, "")), &stdout, terminal)
		}()
		shows := func(what string, is func(string) bool) {
			require.Eventually(t, func() bool { return is(seen.text()) }, 10*time.Second, 5*time.Millisecond, "%s: %s", tc.line, what)
		}
		checks = append(checks, func() {
			erased := ""
			if tc.says != "" {
				erased = "\r\x1b[K"
				shows(tc.says, func(text string) bool { return strings.Contains(text, tc.says) })
			}
			interrupt()
			require.Equal(t, exitInterrupted, <-code, tc.line)
			want := erased + "lamina: interrupted\r\n"
			shows(want, func(text string) bool { return strings.HasSuffix(text, want) })
			require.Equal(t, tc.says == "", seen.text() == want, "%s: %q", tc.line, seen.text())
			require.Empty(t, stdout.lines())
		})
	}
	for _, check := range checks { // those that show nothing come last, when they would have
		check()
	}
}
