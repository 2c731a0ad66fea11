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
	done     int
	total    int // 0 until it is known
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
	p.done, p.total = done, total
	p.draw()
}

// Elapsed tells how long it takes already: of something that does not tell how far it is, or has not told for a while.
func (p *Progress) Elapsed() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.draw()
}

func (p *Progress) draw() {
	now := p.now()
	if !p.terminal || now.Sub(p.start) < progressAfter || now.Sub(p.last) < progressPeriod {
		return
	}
	p.last = now
	far := ""
	if p.total > 0 {
		full := share(p.done, p.total, barWidth)
		bar := p.style.Paint(Cyan, strings.Repeat("█", full)) + p.style.Paint(Dim, strings.Repeat("░", barWidth-full))
		far = fmt.Sprintf(" %s %d/%d", bar, p.done, p.total)
	}
	_, _ = fmt.Fprintf(p.w, "%s%s%s for %s", eraseLine, p.text, far, Duration(now.Sub(p.start)))
}

// Aside takes the line away while fn prints, or asks, on the same terminal.
func (p *Progress) Aside(fn func() error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
	return fn()
}

// Write prints what a log says, aside.
func (p *Progress) Write(line []byte) (n int, err error) {
	err = p.Aside(func() error {
		n, err = p.w.Write(line)
		return err
	})
	return n, err
}

func (p *Progress) erase() {
	if !p.last.IsZero() {
		_, _ = io.WriteString(p.w, eraseLine)
	}
	p.last = time.Time{}
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
	p.erase()
	p.terminal = false
}
