package manual

import (
	"fmt"
	"strings"
	"time"
)

// Page is a manual page: lamina-serve(1) has the name "lamina-serve" and the section 1.
type Page struct {
	Name    string
	Section int
	Text    string // in the man(7) macros of roff
}

// File is the name that a page has in the directory of its section.
func (p Page) File() string { return fmt.Sprintf("%s.%d", p.Name, p.Section) }

// Edition is what stands at the top and the bottom of each page.
type Edition struct {
	Version string
	Date    time.Time
}

// A roff is a page that is being written.
type roff struct{ strings.Builder }

func newRoff(e Edition, name string, section int, summary string) *roff {
	r := &roff{}
	r.line(`.TH %s %d %s %s Lamina`, quoted(strings.ToUpper(name)), section, quoted(e.Date.UTC().Format(time.DateOnly)), quoted("lamina "+e.Version))
	// Hyphenated words and lines that are stretched make commands and paths hard to read and to copy.
	r.line(`.nh`)
	r.line(`.ad l`)
	r.section("NAME")
	r.line(`%s \- %s`, escape(name), escape(summary))
	return r
}

func (r *roff) line(format string, args ...any) {
	_, _ = fmt.Fprintf(r, format+"\n", args...) // a Builder has no errors
}

func (r *roff) section(title string) { r.line(".SH %s", title) }

// text writes plain text: paragraphs, which an empty line ends, and what stays as it is: lines that begin with a space, and
// a paragraph that begins with a comment, which is for a shell.
func (r *roff) text(text string) {
	for i, paragraph := range strings.Split(strings.Trim(text, "\n"), "\n\n") {
		if i > 0 {
			r.line(".PP")
		}
		r.paragraph(strings.Split(paragraph, "\n"))
	}
}

func (r *roff) paragraph(lines []string) {
	fixed, shell := false, strings.HasPrefix(lines[0], "#")
	for _, line := range lines {
		if keep := shell || strings.HasPrefix(line, " "); keep != fixed {
			fixed = keep
			r.line("%s", map[bool]string{true: ".nf", false: ".fi"}[fixed])
		}
		r.line("%s", guarded(escape(line)))
	}
	if fixed {
		r.line(".fi")
	}
}

// item begins a paragraph with a tag, which is roff already.
func (r *roff) item(tag string) {
	r.line(".TP")
	r.line("%s", guarded(tag))
}

func bold(s string) string   { return `\fB` + escape(s) + `\fR` }
func italic(s string) string { return `\fI` + escape(s) + `\fR` }

// escape has each character stand for itself. A dash is a minus, as it is one in options and paths that are copied.
func escape(s string) string {
	return strings.NewReplacer(`\`, `\e`, `-`, `\-`, `'`, `\(aq`, `"`, `\(dq`, "`", "\\`", `^`, `\(ha`, `~`, `\(ti`).Replace(s)
}

// guarded keeps a line from being taken for a macro.
func guarded(line string) string {
	if strings.HasPrefix(line, ".") {
		return `\&` + line
	}
	return line
}

// quoted is an argument of a macro.
func quoted(s string) string { return `"` + escape(s) + `"` }

// marked turns the code spans of Markdown into bold.
func marked(s string) string {
	var b strings.Builder
	for i, part := range strings.Split(s, "`") {
		if i%2 == 1 {
			b.WriteString(bold(part))
		} else {
			b.WriteString(escape(part))
		}
	}
	return guarded(b.String())
}
