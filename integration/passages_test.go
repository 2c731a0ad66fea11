package integration

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A passage is a block of commands of a page.
type passage struct {
	page     string
	line     int
	commands string
	// on are the backends that it is run on, and unless there is one why says why not.
	on  []string
	why string
	// shown is what the page shows that they print, if it does.
	shown string
}

// passagesOf returns the commands of a page in their order. They stand in fences of
// the language sh. A comment before a fence says where its commands are run,
// <!-- run: union, thin -->, or why they are not, <!-- not run: REASON -->;
// without one they are run on union. What they print may follow, in a fence of the
// language text or json; one of these that stands elsewhere has a comment of what
// else it is.
func passagesOf(t *testing.T, page string) (all []passage) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(repository(t), page))
	require.NoError(t, err)
	lines := strings.Split(string(content), "\n")
	shell := 0 // the end of the last commands
	for i := 0; i < len(lines); i++ {
		language, fence := strings.CutPrefix(lines[i], "```")
		if !fence {
			isCode := strings.HasPrefix(lines[i], "    ") && i > 0 && lines[i-1] == ""
			require.False(t, isCode, "%s:%d: code outside of a fence, which nobody tests", page, i+1)
			continue
		}
		end := i + 1 + slices.Index(lines[i+1:], "```")
		require.Greater(t, end, i, "%s:%d: the fence has no end", page, i+1)
		switch language {
		case "sh":
			all = append(all, newPassage(t, page, i, lines, end))
		case "text", "json":
			if strings.HasPrefix(lines[i-1], "<!-- ") {
				break
			}
			require.True(t, i > 2 && shell == i-2, "%s:%d: neither below commands that print it, nor with a comment", page, i+1)
			all[len(all)-1].shown = strings.Join(lines[i+1:end], "\n")
		default:
			require.Contains(t, []string{"toml", "ini", "yaml"}, language, "%s:%d", page, i+1)
		}
		if i = end; language == "sh" {
			shell = end
		}
	}
	return all
}

func newPassage(t *testing.T, page string, at int, lines []string, end int) passage {
	t.Helper()
	p := passage{page: page, line: at + 1, commands: strings.Join(lines[at+1:end], "\n"), on: []string{union.name}}
	comment, marked := strings.CutPrefix(lines[at-1], "<!-- ")
	if !marked {
		return p
	}
	comment, closed := strings.CutSuffix(comment, " -->")
	require.True(t, closed, "%s:%d", page, at)
	mark, text, _ := strings.Cut(comment, ": ")
	switch mark {
	case "run":
		p.on = strings.Split(text, ", ")
		for _, name := range p.on {
			require.Contains(t, []string{union.name, thinExt4.name}, name, "%s:%d", page, at)
		}
	case "not run":
		p.on, p.why = nil, text
		require.Greater(t, len(strings.Fields(text)), 2, "%s:%d: the reason is missing", page, at)
	default:
		t.Fatalf("%s:%d: %q is no mark", page, at, mark)
	}
	return p
}
