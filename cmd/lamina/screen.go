package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"

	laminaterm "github.com/lamina-snapshotter/lamina/internal/term"
)

const (
	// enterScreen takes the alternate screen, which has no history, and hides the cursor; leaveScreen is its reverse.
	enterScreen = "\x1b[?1049h\x1b[?25l"
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	// home begins a frame. A line erases what is left of the old one, and the end what is below.
	home      = "\x1b[H"
	endOfLine = "\x1b[K\r\n"
	endOfPage = "\x1b[J"
)

// A screen is a terminal while it is drawn on. It has a mode in which keys arrive at once and Ctrl-C is one of them.
type screen struct {
	out   io.Writer
	in    *os.File
	saved *term.State // nil if nobody types there
}

// openScreen takes the terminal, and calls end when q or Ctrl-C is typed. What else is typed is swallowed.
func openScreen(in io.Reader, out io.Writer, end func()) (*screen, error) {
	s := &screen{out: out}
	if f, ok := in.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		saved, err := term.MakeRaw(int(f.Fd()))
		if err != nil {
			return nil, fmt.Errorf("the terminal: %w", err)
		}
		s.in, s.saved = f, saved
		go keys(f, end)
	}
	if _, err := io.WriteString(out, enterScreen); err != nil {
		return nil, errors.Join(err, s.restore())
	}
	return s, nil
}

// keys reads what is typed until that ends it. A read cannot be interrupted: it is left to the end of the process.
func keys(in io.Reader, end func()) {
	defer end()
	const ctrlC, ctrlD = 3, 4
	var typed [64]byte
	for {
		n, err := in.Read(typed[:])
		if err != nil {
			return
		}
		for _, key := range typed[:n] {
			if key == 'q' || key == 'Q' || key == ctrlC || key == ctrlD {
				return
			}
		}
	}
}

func (s *screen) restore() error {
	if s.saved == nil {
		return nil
	}
	return term.Restore(int(s.in.Fd()), s.saved)
}

// close gives the terminal back as it was.
func (s *screen) close() {
	_, _ = io.WriteString(s.out, leaveScreen) // the mode is restored whatever becomes of it
	_ = s.restore()
}

// fit leaves as much of a page as the terminal shows.
func (s *screen) fit(page string) string {
	columns, rows := laminaterm.Size(s.out)
	lines := strings.Split(strings.TrimRight(page, "\n"), "\n")
	lines = lines[:min(len(lines), max(1, rows-1))]
	for i, line := range lines {
		lines[i] = laminaterm.CutPainted(line, columns)
	}
	return strings.Join(lines, "\n")
}

// draw draws a page over the last one.
func (s *screen) draw(page string) error {
	_, err := io.WriteString(s.out, home+strings.ReplaceAll(page, "\n", endOfLine)+endOfLine+endOfPage)
	return err
}
