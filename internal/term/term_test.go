package term

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestQuote(t *testing.T) {
	for text, want := range map[string]string{
		"k8s.io/12/sha256:abc": "k8s.io/12/sha256:abc",
		"ünïcode/日本":           "ünïcode/日本",
		"":                     `""`,
		"a b":                  `"a b"`,
		`"a"`:                  `"\"a\""`,
		"\x1b[2J":              `"\x1b[2J"`,
		"a\nb":                 `"a\nb"`,
		"a\u009b2J":            `"a\u009b2J"`,
		"a\u202eb":             `"a\u202eb"`,
		"a\xffb":               `"a\xffb"`,
		"a\x7f":                `"a\x7f"`,
	} {
		require.Equal(t, want, Quote(text))
	}
	require.Equal(t, "no \"k\": \\x1b[2J\nüber \\u009b\\xff", Clean("no \"k\": \x1b[2J\nüber \u009b\xff"))
	require.Equal(t, "as it is", Clean("as it is"))
}

// Nothing that a terminal obeys gets out, whatever goes in.
func FuzzQuote(f *testing.F) {
	f.Add("a\x1b[2J\u009b\u202e\xff\n")
	f.Fuzz(func(t *testing.T, text string) {
		var b bytes.Buffer
		require.NoError(t, JSON(&b, text))
		var back string
		require.NoError(t, json.Unmarshal(b.Bytes(), &back))
		require.Equal(t, string([]rune(text)), back)
		for _, out := range []string{Quote(text), Line(text), strings.ReplaceAll(Clean(text), "\n", ""), strings.TrimSuffix(b.String(), "\n")} {
			for _, r := range out {
				require.False(t, r < ' ' || r >= 0x7f && r <= 0x9f || r == 0x202e, "%q gives %q", text, out)
			}
		}
	})
}

func TestHuman(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 10 << 20: "10 MiB", 1023 << 20: "1 GiB", 123456789: "118 MiB",
		1 << 63: "8 EiB", 5<<30 + 1<<28: "5.25 GiB",
	} {
		require.Equal(t, want, Bytes(n), n)
	}
	for d, want := range map[time.Duration]string{
		-time.Hour: "0 s", 12 * time.Millisecond: "12 ms", 90 * time.Second: "90 s", 5 * time.Minute: "5 min", 3 * time.Hour: "3 h",
		72 * time.Hour: "3 d", 3 * 365 * 24 * time.Hour: "2 a",
	} {
		require.Equal(t, want, Duration(d), d)
	}
	require.Equal(t, "ages", Seconds(1e300))
	require.Equal(t, "90 s", Seconds(90.4))
	require.Equal(t, "99 %", Percent(999, 1000))
	require.Equal(t, "-", Percent(0, 0))
	require.Equal(t, "-", Age(time.Now(), time.Time{}))
}

func TestTable(t *testing.T) {
	table := Table{Head: []string{"KEY", "SIZE", "WHAT"}, Right: []bool{false, true}}
	table.Add("├─ü", "1 B", "")
	table.Add("b", "1000 B", "x")
	table.Add("longest", "", "y")
	var b bytes.Buffer
	require.NoError(t, table.Print(&b))
	want := "KEY        SIZE  WHAT\n├─ü         1 B\nb        1000 B  x\nlongest          y\n"
	require.Equal(t, want, b.String())

	table.Style = Style{Colours: true}
	table.Rows[0][0] = table.Style.Paint(Red, table.Rows[0][0])
	b.Reset()
	require.NoError(t, table.Print(&b))
	require.Contains(t, b.String(), "\x1b[31m├─ü\x1b[0m         1 B\n", "colours have no width")
}

func TestBar(t *testing.T) {
	plain, colours := Style{}, Style{Colours: true}
	require.Equal(t, "█████░░░░░", plain.Bar(50, 100, 10))
	require.Equal(t, "█░░░░░░░░░", plain.Bar(1, 1000, 10), "something is not nothing")
	require.Equal(t, "░░░░░░░░░░", plain.Bar(0, 0, 10))
	require.Equal(t, "██████████", plain.Bar(200, 100, 10))
	require.Contains(t, colours.Bar(90, 100, 10), "\x1b[31m")
	require.Contains(t, colours.Bar(75, 100, 10), "\x1b[33m")
	require.Contains(t, colours.Bar(74, 100, 10), "\x1b[32m")
	require.False(t, StyleOf(&bytes.Buffer{}).Colours)
	require.Equal(t, "abc", CutPainted("abcdef", 3))
	require.Equal(t, "abc", CutPainted("abc", 3))
	require.Equal(t, "\x1b[31mab\x1b[0m", CutPainted(colours.Paint(Red, "abc"), 2))
	require.Equal(t, colours.Paint(Red, "abc"), CutPainted(colours.Paint(Red, "abc"), 3))
}

// Nobody is told of what takes less than a second, and the line vanishes.
func TestProgress(t *testing.T) {
	var b bytes.Buffer
	now := time.Now()
	p := NewProgress(&b, "looking")
	p.terminal, p.now = true, func() time.Time { return now }
	p.start = now
	p.Show(1, 4)
	require.Empty(t, b.String())
	now = now.Add(progressAfter)
	p.Show(2, 4)
	require.Contains(t, b.String(), "looking ████████████░░░░░░░░░░░░ 2/4 for 1 s")
	n := b.Len()
	p.Show(3, 4)
	require.Equal(t, n, b.Len(), "too soon")
	now = now.Add(2 * time.Second)
	p.Elapsed()
	require.True(t, strings.HasSuffix(b.String(), " 3/4 for 3 s"), b.String())
	require.NoError(t, p.Aside(func() error {
		b.WriteString("a line\n")
		return nil
	}))
	require.True(t, strings.HasSuffix(b.String(), eraseLine+"a line\n"), b.String())
	p.Elapsed()
	n, err := p.Write([]byte("level=info\n"))
	require.NoError(t, err)
	require.Equal(t, len("level=info\n"), n)
	require.True(t, strings.HasSuffix(b.String(), "3/4 for 3 s"+eraseLine+"level=info\n"), b.String())
	p.Show(0, 0)
	require.True(t, strings.HasSuffix(b.String(), "looking for 3 s"), b.String())
	p.End()
	require.True(t, strings.HasSuffix(b.String(), eraseLine))
	p.Show(4, 4)
	p.Elapsed()
	require.True(t, strings.HasSuffix(b.String(), eraseLine))

	b.Reset()
	p = NewProgress(&b, "looking")
	p.start = now.Add(-time.Hour)
	p.Show(1, 2)
	p.End()
	require.Empty(t, b.String(), "nobody looks")
}
