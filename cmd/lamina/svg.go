package main

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"strings"
	"time"

	"github.com/lamina-snapshotter/lamina/internal/term"
)

// The measures of the drawing, in pixels. Texts are in a font whose letters are all as wide.
const (
	svgRow    = 22
	svgStep   = 18 // from a parent to its children
	svgLetter = 8
	svgMargin = 16
	svgHead   = 2 // rows
	// svgDeep is how far children move to the right. Longer chains go straight down.
	svgDeep = 60
)

const svgStyle = `text{font:13px ui-monospace,monospace;fill:#1f2328}.n{font-weight:bold}.s{fill:#656d76}` +
	`.l{stroke:#afb8c1;fill:none}.committed{fill:#0969da}.active{fill:#1a7f37}.view{fill:#8250df}.a{opacity:.45}` +
	`@media(prefers-color-scheme:dark){text{fill:#e6edf3}.s{fill:#8d96a0}.l{stroke:#57606a}.bg{fill:#0d1117}}`

// A drawing is an SVG picture of forests under way: what it has of the same snapshots and moment it always has.
type drawing struct {
	body bytes.Buffer
	now  time.Time
	row  int
	wide int // the column where the longest text ends, in pixels
}

// drawSVG draws forests: a dot for each snapshot, with a line to its parent.
func drawSVG(forests []forest, now time.Time) []byte {
	d := &drawing{now: now}
	d.legend()
	for _, f := range forests {
		d.forest(f)
	}
	width, height := d.wide+svgMargin, d.row*svgRow+2*svgMargin
	var out bytes.Buffer
	_, _ = fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" role="img">`+"\n", width, height, width, height)
	_, _ = fmt.Fprintf(&out, "<title>Snapshots of Lamina</title>\n<style>%s</style>\n", svgStyle)
	_, _ = fmt.Fprintf(&out, `<rect class="bg" width="%d" height="%d" fill="#fff"/>`+"\n", width, height)
	out.Write(d.body.Bytes())
	out.WriteString("</svg>\n")
	return out.Bytes()
}

// y is the middle of a row.
func y(row int) int { return svgMargin + row*svgRow + svgRow/2 }

func x(depth int) int { return svgMargin + min(depth, svgDeep)*svgStep }

// text writes a text at a column of pixels, and returns where it ends.
func (d *drawing) text(class string, at int, text string) int {
	// XML has no control characters, not even escaped.
	text = term.Line(text)
	_, _ = fmt.Fprintf(&d.body, `<text class="%s" x="%d" y="%d">%s</text>`+"\n", class, at, y(d.row)+4, escapeXML(text))
	end := at + svgLetter*len([]rune(text))
	d.wide = max(d.wide, end)
	return end
}

func escapeXML(text string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(text)) // a Builder takes all
	return b.String()
}

func (d *drawing) dot(class string, at int) {
	_, _ = fmt.Fprintf(&d.body, `<circle class="%s" cx="%d" cy="%d" r="5"/>`+"\n", escapeXML(term.Line(class)), at, y(d.row))
}

func (d *drawing) legend() {
	at := svgMargin
	for _, kind := range []string{"committed", "active", "view"} {
		d.dot(kind, at+5)
		at = d.text("s", at+16, kind) + 16
	}
	d.row += svgHead
}

func (d *drawing) forest(f forest) {
	d.text("n", svgMargin-5, fmt.Sprintf("%s: %d snapshots", term.Quote(f.name), f.count))
	d.row++
	rows := make(map[*node]int)
	for _, n := range before(f.roots) {
		rows[n] = d.row
		d.node(n)
		d.row++
	}
	for _, n := range before(f.roots) {
		d.lines(n, rows)
	}
	d.row++
}

// node draws a snapshot: its dot, name, and what is known of it.
func (d *drawing) node(n *node) {
	at := x(n.depth)
	class := n.Kind
	if n.aside {
		class += " a"
	}
	d.dot(class, at)
	end := d.text("k", at+12, shortName(n.Key))
	facts := []string{sizeText(n.Snapshot), term.Age(d.now, n.Created)}
	if namespace, _ := splitKey(n.Key); namespace != "" {
		facts = append(facts, term.Quote(namespace))
	}
	if image := imageOf(n.Snapshot); image != "" {
		facts = append(facts, image)
	}
	d.text("s", end+12, strings.Join(facts, " · "))
}

// lines draws the lines from a snapshot to its children.
func (d *drawing) lines(n *node, rows map[*node]int) {
	for _, c := range n.children {
		from, to := x(n.depth), x(c.depth)
		_, _ = fmt.Fprintf(&d.body, `<path class="l" d="M%d %dV%dH%d"/>`+"\n", from, y(rows[n])+6, y(rows[c]), max(from, to-6))
	}
}
