package term

import (
	"io"
	"os"
	"strings"

	"golang.org/x/term"
)

// A Colour is what a text looks like on a terminal.
type Colour string

// The colours.
const (
	Plain  Colour = ""
	Bold   Colour = "1"
	Dim    Colour = "2"
	Red    Colour = "31"
	Green  Colour = "32"
	Yellow Colour = "33"
	Cyan   Colour = "36"
)

// A Style paints texts, or leaves them as they are.
type Style struct{ Colours bool }

// StyleOf returns colours for a terminal, unless NO_COLOR is set (https://no-color.org) or the terminal is dumb.
func StyleOf(w io.Writer) Style {
	return Style{Colours: IsTerminal(w) && os.Getenv("NO_COLOR") == "" && !Dumb()}
}

// Paint returns text in a colour.
func (s Style) Paint(c Colour, text string) string {
	if !s.Colours || c == Plain || text == "" {
		return text
	}
	return "\x1b[" + string(c) + "m" + text + "\x1b[0m"
}

// IsTerminal reports whether somebody is at the other end of a reader or writer.
func IsTerminal(end any) bool {
	f, ok := end.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// Dumb reports whether the terminal is said to know no escape sequences.
func Dumb() bool {
	name := os.Getenv("TERM")
	return name == "" || name == "dumb"
}

// Size returns the columns and rows of a terminal, or 80 and 24.
func Size(end any) (columns, rows int) {
	if f, ok := end.(*os.File); ok {
		if columns, rows, err := term.GetSize(int(f.Fd())); err == nil && columns > 0 && rows > 0 {
			return columns, rows
		}
	}
	return 80, 24
}

// Bar returns a bar of so many columns: green, yellow from 75 % on and red from 90 %.
func (s Style) Bar(used, total uint64, width int) string {
	share := 0.0
	if total > 0 {
		share = min(float64(used)/float64(total), 1)
	}
	colour := Green
	switch {
	case share >= 0.9:
		colour = Red
	case share >= 0.75:
		colour = Yellow
	}
	full := int(share * float64(width))
	if full == 0 && used > 0 {
		full = 1
	}
	return s.Paint(colour, strings.Repeat("█", full)) + s.Paint(Dim, strings.Repeat("░", width-full))
}

// width is how many columns a text takes. It may be painted. Letters that take two are counted as one: a table is then crooked, and
// nothing worse.
func width(text string) int {
	n, escape := 0, false
	for _, r := range text {
		switch {
		case escape:
			escape = r != 'm'
		case r == '\x1b':
			escape = true
		default:
			n++
		}
	}
	return n
}

// CutPainted returns the first columns of a text that may be painted.
func CutPainted(text string, columns int) string {
	if width(text) <= columns {
		return text
	}
	n, escape := 0, false
	for i, r := range text {
		switch {
		case escape:
			escape = r != 'm'
		case r == '\x1b':
			escape = true
		case n == columns:
			if strings.ContainsRune(text, '\x1b') {
				return text[:i] + "\x1b[0m"
			}
			return text[:i]
		default:
			n++
		}
	}
	return text
}
