package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/internal/term"
)

// A glass is what a terminal shows, all of it.
type glass struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (g *glass) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.all.Write(p)
}

func (g *glass) text() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.all.String()
}

// tTerminal returns a terminal, what somebody sees on it, and how he types.
func tTerminal(t *testing.T) (terminal *os.File, seen *glass, keyboard func(string)) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	fd := int(master.Fd())
	require.NoError(t, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	require.NoError(t, err)
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	require.NoError(t, unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 12, Col: 60}))
	seen = &glass{}
	read := make(chan struct{})
	go func() {
		defer close(read)
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			if err != nil {
				return // EIO, once nobody has the other end
			}
			_, _ = seen.Write(buf[:n])
		}
	}()
	t.Cleanup(func() {
		_, err := master.WriteString("q\n") // a read under way would keep the terminal open
		require.NoError(t, err)
		require.NoError(t, terminal.Close())
		<-read
		require.NoError(t, master.Close())
	})
	return terminal, seen, func(text string) {
		_, err := master.WriteString(text)
		require.NoError(t, err)
	}
}

// tWatch returns a top of a daemon, on a terminal.
func tWatch(t *testing.T, terminal *os.File) *watch {
	t.Helper()
	s, err := readSettings(tOperated(t, tFakeRoot()), true)
	require.NoError(t, err)
	client, err := s.client()
	require.NoError(t, err)
	t.Cleanup(client.Close)
	a := &asking{settings: s, out: terminal, err: terminal, now: time.Now}
	return &watch{asking: a, client: client, delay: minDelay, meter: newSpaceMeter(client, a.now)}
}

// However top ends, the terminal is what it was.
func TestTopScreen(t *testing.T) {
	t.Setenv("TERM", "xterm")
	for name, end := range map[string]func(keyboard func(string), stop func()){
		"q":      func(keyboard func(string), _ func()) { keyboard("q") },
		"Ctrl-C": func(keyboard func(string), _ func()) { keyboard("\x03") },
		"signal": func(_ func(string), stop func()) { stop() },
	} {
		t.Run(name, func(t *testing.T) {
			terminal, seen, keyboard := tTerminal(t)
			was, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
			require.NoError(t, err)
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			ended := make(chan error, 1)
			go func() { ended <- tWatch(t, terminal).run(ctx, terminal) }()
			require.Eventually(t, func() bool { return strings.Count(seen.text(), home) >= 2 }, 10*time.Second, time.Millisecond)
			keyboard("xyz\n") // of no meaning
			end(keyboard, stop)
			require.NoError(t, <-ended)
			is, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
			require.NoError(t, err)
			require.Equal(t, was, is)
			require.Eventually(t, func() bool { return strings.Contains(seen.text(), leaveScreen) }, 10*time.Second, time.Millisecond)
			text := seen.text()
			require.True(t, strings.HasPrefix(text, enterScreen), "%q", text)
			frame := strings.Split(text, home)[1]
			require.Contains(t, frame, "v1.2.3")
			require.LessOrEqual(t, strings.Count(frame, "\n"), 11, "no more than the terminal shows")
		})
	}
}

// A terminal that knows no sequences gets lines.
func TestTopDumb(t *testing.T) {
	t.Setenv("TERM", "dumb")
	terminal, seen, _ := tTerminal(t)
	w := tWatch(t, terminal)
	w.count = 2
	require.NoError(t, w.run(t.Context(), terminal))
	require.Eventually(t, func() bool { return strings.Count(seen.text(), "union trash 3") == 2 }, 10*time.Second, time.Millisecond)
	require.NotContains(t, seen.text(), "\x1b")
}

// A daemon that ends is no reason to leave a terminal as it is.
func TestTopLosesDaemon(t *testing.T) {
	t.Setenv("TERM", "xterm")
	terminal, seen, _ := tTerminal(t)
	w := tWatch(t, terminal)
	lost := w.settings
	lost.Admin.Address += ".gone"
	var err error
	w.client, err = lost.client()
	require.NoError(t, err)
	w.meter = newSpaceMeter(w.client, w.now)
	require.Error(t, w.run(t.Context(), terminal))
	require.Eventually(t, func() bool { return strings.Contains(seen.text(), leaveScreen) }, 10*time.Second, time.Millisecond)
}

// Colours are for a terminal, and for nobody who has declined them.
func TestColours(t *testing.T) {
	terminal, _, _ := tTerminal(t)
	for _, tc := range []struct {
		term, no string
		colours  bool
	}{{"xterm", "", true}, {"xterm", "1", false}, {"dumb", "", false}, {"", "", false}} {
		t.Setenv("TERM", tc.term)
		t.Setenv("NO_COLOR", tc.no)
		require.Equal(t, tc.colours, term.StyleOf(terminal).Colours, "%+v", tc)
	}
}
