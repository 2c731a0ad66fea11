package main

import (
	"fmt"
	"io"
	"time"
)

// clocked puts the seconds that have passed before each line that is written to w.
type clocked struct {
	w     io.Writer
	began time.Time
}

func (c *clocked) Write(line []byte) (int, error) {
	if _, err := fmt.Fprintf(c.w, "%6.1f  ", time.Since(c.began).Seconds()); err != nil {
		return 0, err
	}
	return c.w.Write(line)
}
