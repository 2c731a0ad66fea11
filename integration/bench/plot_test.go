package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func tPlot() plot {
	return plot{title: "a < b & c", x: "snapshots", y: "µs", curves: []curve{
		{name: "Prepare", points: [][2]float64{{100, 1000}, {1000, 1000}, {10_000, 10_000}}},
		{name: "Prepare, <peer>", dashed: true, points: [][2]float64{{100, 2000}}},
	}}
}

// A plot is XML whatever the texts are, and the same for the same figures.
func TestPlotIsXML(t *testing.T) {
	drawn := tPlot().svg()
	require.Equal(t, drawn, tPlot().svg())
	lines, texts := 0, ""
	for d := xml.NewDecoder(bytes.NewReader(drawn)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		switch token := token.(type) {
		case xml.StartElement:
			if token.Name.Local == "polyline" {
				lines++
			}
		case xml.CharData:
			texts += string(token) + "\n"
		}
	}
	require.Equal(t, 2, lines)
	for _, text := range []string{"a < b & c", "snapshots", "µs", "Prepare, <peer>", "10\u202f000", "prefers-color-scheme:dark"} {
		require.Contains(t, texts, text)
	}
}

// What is as many times as much is as far away, on either axis, and more is further up.
func TestPlotScale(t *testing.T) {
	_, rest, _ := strings.Cut(string(tPlot().svg()), `<polyline class="line c0" points="`)
	points, _, _ := strings.Cut(rest, `"`)
	require.Equal(t, []string{"64.0", "322.0", "580.0"}, []string{
		strings.Split(points, ",")[0], strings.Fields(points)[1][:5], strings.Fields(points)[2][:5],
	}, points)
	y := func(i int) float64 {
		v, err := strconv.ParseFloat(strings.Split(strings.Fields(points)[i], ",")[1], 64)
		require.NoError(t, err)
		return v
	}
	require.InDelta(t, y(0), y(1), 0)
	require.Less(t, y(2), y(0))
}

func TestTicks(t *testing.T) {
	require.Equal(t, []float64{20, 50, 100, 200}, ticks(15, 300))
	require.Empty(t, ticks(11, 19))
}
