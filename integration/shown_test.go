package integration

import (
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// What differs from one run to the next, and from one host to another.
var (
	bars    = regexp.MustCompile(`[█░]+`)
	digests = regexp.MustCompile(`\b[0-9a-f]{8,}\b`)
	figures = regexp.MustCompile(`[0-9]+([.,][0-9]+)*( ?([KMGT]?i?B|ms|s|min|h|d|%)\b)?`)
	spaces  = regexp.MustCompile(`[ \t]+`)
)

// masked gives each line of an output without its figures, and columns one space apart.
func masked(out string) string {
	var b strings.Builder
	for line := range strings.Lines(strings.TrimSpace(out) + "\n") {
		line = digests.ReplaceAllString(bars.ReplaceAllString(line, "▒"), "#")
		line = spaces.ReplaceAllString(figures.ReplaceAllString(line, "#"), " ")
		b.WriteString(strings.TrimSpace(line) + "\n")
	}
	return b.String()
}

// shows reports whether an output is as a page shows it: a line ... stands for any number of lines, and ... in a line for any text.
func shows(shown, printed string) bool {
	pattern := regexp.QuoteMeta(masked(shown))
	pattern = regexp.MustCompile(`(?m)^\\\.\\\.\\\.\n`).ReplaceAllString(pattern, `(?:.*\n)*`)
	return regexp.MustCompile(`^` + strings.ReplaceAll(pattern, `\.\.\.`, `.*`) + `$`).MatchString(masked(printed))
}

func TestShows(t *testing.T) {
	const status = "SNAPSHOT  KIND   SIZE\n└─sha256:290926fc307a  committed  1.2 MiB\ndisk ███░░ 12 %\n"
	for _, same := range []string{
		status,
		"SNAPSHOT KIND SIZE\n└─sha256:aaaaaaaaaaaa committed 200 B\ndisk █░ 1 %",
		"...\ndisk █░ 1 %",
		"SNAPSHOT ...\n...\ndisk ... 2 %\n...",
	} {
		require.True(t, shows(same, status), same)
	}
	for _, other := range []string{
		"", "SNAPSHOT  KIND   SIZE", strings.Replace(status, "KIND", "KINDS", 1), strings.Replace(status, "committed", "active", 1), "...\nfree 3 %",
	} {
		require.False(t, shows(other, status), other)
	}
}
