package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// A markdown is where tables are written to that are pasted into a page.
type markdown struct{ io.Writer }

// printRows prints a table, of which the first row is the head: aligned, or in Markdown where w is.
func printRows(w io.Writer, align uint, rows [][]string) error {
	if m, ok := w.(markdown); ok {
		for i, row := range rows {
			if _, err := fmt.Fprintf(m, "| %s |\n", strings.Join(row, " | ")); err != nil {
				return err
			}
			if i == 0 {
				if _, err := fmt.Fprintln(m, strings.Repeat("|---", len(row))+"|"); err != nil {
					return err
				}
			}
		}
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', align)
	for _, row := range rows {
		_, _ = fmt.Fprintln(t, strings.Join(row, "\t")+"\t")
	}
	return t.Flush()
}
