package term

import (
	"io"
	"strings"
)

// A Table is rows of cells, which may be painted. A column is as wide as its widest cell.
type Table struct {
	Head  []string
	Right []bool // the columns that are aligned there
	Rows  [][]string
	Style Style
}

// Add adds a row.
func (t *Table) Add(cells ...string) { t.Rows = append(t.Rows, cells) }

// Print prints the table, its head first.
func (t *Table) Print(w io.Writer) error {
	rows := t.Rows
	if len(t.Head) > 0 {
		head := make([]string, len(t.Head))
		for i, cell := range t.Head {
			head[i] = t.Style.Paint(Bold, cell)
		}
		rows = append([][]string{head}, rows...)
	}
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], width(cell))
		}
	}
	var b strings.Builder
	for _, row := range rows {
		t.line(&b, row, widths)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (t *Table) line(b *strings.Builder, row []string, widths []int) {
	gap := 0 // blanks that stand before the next cell, if there is one
	for i, cell := range row {
		if cell == "" {
			gap += widths[i] + 2
			continue
		}
		blank := widths[i] - width(cell)
		if i < len(t.Right) && t.Right[i] {
			gap, blank = gap+blank, 0
		}
		b.WriteString(strings.Repeat(" ", gap))
		b.WriteString(cell)
		gap = blank + 2
	}
	b.WriteByte('\n')
}
