package main

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"math"
	"slices"
	"strconv"
)

// A plot is lines over two logarithmic axes, as SVG: what is as long in it is as many times as much. It is readable on light and on dark
// ground, and the same bytes for the same figures.
type plot struct {
	title, x, y string
	curves      []curve
}

// A curve has points above zero, from left to right.
type curve struct {
	name   string
	color  int // of the palette
	dashed bool
	points [][2]float64
}

// The size of a plot, and of what is around it.
const (
	plotWidth, plotHeight                    = 760.0, 420.0
	plotLeft, plotRight, plotTop, plotBottom = 64.0, 180.0, 36.0, 48.0
)

// plotStyle has six colors that people who see red and green alike tell apart (Okabe and Ito), lighter ones where the ground is dark.
const plotStyle = `text{font:12px sans-serif;fill:#333}.grid{stroke:#ccc;stroke-width:1}.line{fill:none;stroke-width:2}.dashed{stroke-dasharray:5 4;stroke-width:1.5}` +
	`.c0{stroke:#0072b2}.c1{stroke:#d55e00}.c2{stroke:#009e73}.c3{stroke:#cc79a7}.c4{stroke:#8a6d00}.c5{stroke:#555}` +
	`@media (prefers-color-scheme:dark){text{fill:#ddd}.grid{stroke:#444}.c0{stroke:#56b4e9}.c1{stroke:#ff9a4d}.c2{stroke:#2fd6a6}` +
	`.c3{stroke:#e8a5cb}.c4{stroke:#f0e442}.c5{stroke:#bbb}}`

// bounds returns the least and the greatest of a coordinate, with some room where there is one value alone.
func (p plot) bounds(axis int) (low, high float64) {
	low, high = math.Inf(1), math.Inf(-1)
	for _, c := range p.curves {
		for _, point := range c.points {
			low, high = min(low, point[axis]), max(high, point[axis])
		}
	}
	if low >= high {
		low, high = low/2, high*2
	}
	return low, high
}

// ticks returns the values at which a logarithmic axis is marked: 1, 2 and 5 of each decade, within the bounds.
func ticks(low, high float64) (all []float64) {
	for e := math.Floor(math.Log10(low)); e <= math.Log10(high); e++ {
		for _, m := range []float64{1, 2, 5} {
			if v := m * math.Pow(10, e); v >= low*0.999 && v <= high*1.001 {
				all = append(all, v)
			}
		}
	}
	return all
}

// svg draws the plot.
func (p plot) svg() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" role="img"><title>%s</title><style>%s</style>`+"\n",
		plotWidth, plotHeight, escaped(p.title), plotStyle)
	right, bottom := plotWidth-plotRight, plotHeight-plotBottom
	lowX, highX := p.bounds(0)
	lowY, highY := p.bounds(1)
	lowY, highY = lowY*0.8, highY*1.25
	x := func(v float64) float64 { return plotLeft + (right-plotLeft)*math.Log(v/lowX)/math.Log(highX/lowX) }
	y := func(v float64) float64 { return bottom - (bottom-plotTop)*math.Log(v/lowY)/math.Log(highY/lowY) }
	p.text(&b, plotLeft, 20, "start", p.title)
	for _, v := range p.columns() {
		fmt.Fprintf(&b, `<line class="grid" x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f"/>`+"\n", x(v), plotTop, x(v), bottom)
		p.text(&b, x(v), bottom+18, "middle", number3(v))
	}
	for _, v := range ticks(lowY, highY) {
		fmt.Fprintf(&b, `<line class="grid" x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f"/>`+"\n", plotLeft, y(v), right, y(v))
		p.text(&b, plotLeft-6, y(v)+4, "end", number3(v))
	}
	p.text(&b, (plotLeft+right)/2, plotHeight-10, "middle", p.x)
	fmt.Fprintf(&b, `<text transform="translate(14 %.1f) rotate(-90)" text-anchor="middle">%s</text>`+"\n", (plotTop+bottom)/2, escaped(p.y))
	for i, c := range p.curves {
		class := fmt.Sprintf("line c%d", c.color)
		if c.dashed {
			class += " dashed"
		}
		fmt.Fprintf(&b, `<polyline class="%s" points="`, class)
		for j, point := range c.points {
			if j > 0 {
				b.WriteByte(' ')
			}
			fmt.Fprintf(&b, "%.1f,%.1f", x(point[0]), y(point[1]))
		}
		b.WriteString("\"/>\n")
		at := plotTop + 8 + 18*float64(i)
		fmt.Fprintf(&b, `<line class="%s" x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f"/>`+"\n", class, right+14, at, right+40, at)
		p.text(&b, right+46, at+4, "start", c.name)
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

// columns are the values of x that curves have: those that were measured.
func (p plot) columns() (all []float64) {
	for _, c := range p.curves {
		for _, point := range c.points {
			all = append(all, point[0])
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func (p plot) text(b *bytes.Buffer, x, y float64, anchor, text string) {
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="%s">%s</text>`+"\n", x, y, anchor, escaped(text))
}

func escaped(text string) string {
	var b bytes.Buffer
	_ = xml.EscapeText(&b, []byte(text)) // a buffer takes all
	return b.String()
}

// number3 is a number with its thousands apart, as in 10 000.
func number3(v float64) string {
	text := strconv.FormatFloat(v, 'f', -1, 64)
	if v < 1000 || v != math.Trunc(v) {
		return text
	}
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "\u202f" + text[i:]
	}
	return text
}
