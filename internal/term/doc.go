// Package term prints for people: tables, bars, sizes, ages and progress, in colours where somebody looks.
//
// What others chose, a key or a label of a snapshot, reaches a terminal only through [Quote], [Line], [Clean] or [JSON]: it could
// hold an escape sequence that moves the cursor or changes the title.
package term
