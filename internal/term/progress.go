package term

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

const (
	// progressAfter is how long something may take before anybody is told.
	progressAfter  = time.Second
	progressPeriod = 100 * time.Millisecond
	eraseLine      = "\r\x1b[K"
)

// A Progress tells how far something is, in a line of a terminal that vanishes at its end. Where nobody looks it tells
// nothing. Its methods may be called from several goroutines.
type Progress struct {
	mu       sync.Mutex
	w        io.Writer
	text     string
	terminal bool
	style    Style
	now      func() time.Time
	start    time.Time
	last     time.Time
}

// NewProgress starts to wait until it is worth telling.
func NewProgress(w io.Writer, text string) *Progress {
	p := &Progress{w: w, text: text, terminal: IsTerminal(w) && !Dumb(), style: StyleOf(w), now: time.Now}
	p.start = p.now()
	return p
}

// Show tells that so many of a total are done.
func (p *Progress) Show(done, total int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	if !p.terminal || now.Sub(p.start) < progressAfter || now.Sub(p.last) < progressPeriod {
		return
	}
	p.last = now
	full := share(done, total, barWidth)
	bar := p.style.Paint(Cyan, strings.Repeat("█", full)) + p.style.Paint(Dim, strings.Repeat("░", barWidth-full))
	_, _ = fmt.Fprintf(p.w, "%s%s %s %d/%d", eraseLine, p.text, bar, done, total)
}

const barWidth = 24

func share(done, total, columns int) int {
	if total <= 0 {
		return 0
	}
	return max(0, min(columns, done*columns/total))
}

// End takes the line away.
func (p *Progress) End() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.last.IsZero() {
		_, _ = io.WriteString(p.w, eraseLine)
	}
	p.terminal = false
}
