package guest

import (
	"bytes"
	"strings"
	"sync"
)

// A console keeps the last lines that a guest's kernel and its process 1
// printed. It is safe for concurrent use.
type console struct {
	mu    sync.Mutex
	lines []string
	part  []byte // of a line
}

// consoleLines is enough for a panic with its stack, and for what came before.
const consoleLines = 100

// Write never fails.
func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.part = append(c.part, p...)
	for {
		line, rest, found := bytes.Cut(c.part, []byte("\n"))
		if !found {
			return len(p), nil
		}
		c.lines = append(c.lines, strings.TrimRight(string(line), "\r"))
		c.lines = c.lines[max(0, len(c.lines)-consoleLines):]
		c.part = rest
	}
}

// String returns the lines, indented.
func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	lines := c.lines
	if len(c.part) > 0 {
		lines = append(lines[:len(lines):len(lines)], string(c.part))
	}
	if len(lines) == 0 {
		return "\t(nothing)"
	}
	return "\t" + strings.Join(lines, "\n\t")
}
