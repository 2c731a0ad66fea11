package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var (
	fence  = regexp.MustCompile("(?ms)^```.*?^```$")
	code   = regexp.MustCompile("`[^`\n]*`")
	link   = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	quoted = regexp.MustCompile(`"[^"]+"`)
	// named are sections of a page: "One", "Two" in docs/page.md.
	named = regexp.MustCompile(`((?:"[^"]+", )*"[^"]+")\s+in\s+(docs/\w+\.md)`)
)

// TestLinks follows each link between the pages to its file and section.
func TestLinks(t *testing.T) {
	pages, err := filepath.Glob("*.md")
	require.NoError(t, err)
	require.Greater(t, len(pages), 10)
	links := 0
	for _, page := range append(pages, "../README.md", "../CHANGELOG.md", "../SECURITY.md") {
		for _, found := range link.FindAllStringSubmatch(code.ReplaceAllString(proseOf(t, page), ""), -1) {
			if strings.Contains(found[1], "://") {
				continue
			}
			links++
			path, section, _ := strings.Cut(found[1], "#")
			if path == "" {
				path = filepath.Base(page)
			}
			path = filepath.Join(filepath.Dir(page), path)
			require.FileExists(t, orDirectory(path), "%s: %s", page, found[1])
			if section != "" {
				require.Contains(t, anchorsOf(t, path), section, "%s: %s", page, found[1])
			}
		}
	}
	require.Greater(t, links, 50)
}

// orDirectory is the path, or for a directory what stands for it.
func orDirectory(path string) string {
	if i, err := os.Stat(path); err == nil && i.IsDir() {
		return os.DevNull
	}
	return path
}

// TestNamedSections looks for the sections that alerts send their readers to.
func TestNamedSections(t *testing.T) {
	rules, err := os.ReadFile("../contrib/prometheus/lamina.rules.yml")
	require.NoError(t, err)
	all := named.FindAllStringSubmatch(strings.Join(strings.Fields(string(rules)), " "), -1)
	require.Greater(t, len(all), 5)
	for _, found := range all {
		for section := range strings.SplitSeq(found[1], ", ") {
			require.Contains(t, anchorsOf(t, filepath.Join("..", found[2])), anchorOf(strings.Trim(section, `"`)), found[0])
		}
	}
}

// TestSettingsSections looks for the sections that the table of settings, and what is made of it, sends its readers to.
func TestSettingsSections(t *testing.T) {
	var sections []string
	for _, page := range []string{"operating.md", "union.md", "thin.md", "containers.md"} {
		sections = append(sections, anchorsOf(t, page)...)
	}
	found := 0
	for line := range strings.Lines(proseOf(t, "configuration.md")) {
		if !strings.HasPrefix(line, "|") {
			continue
		}
		for _, name := range quoted.FindAllString(code.ReplaceAllString(line, ""), -1) {
			found++
			require.Contains(t, sections, anchorOf(name), line)
		}
	}
	require.Greater(t, found, 5)
}

// proseOf returns a page without its code.
func proseOf(t *testing.T, page string) string {
	t.Helper()
	content, err := os.ReadFile(page)
	require.NoError(t, err)
	return fence.ReplaceAllString(string(content), "")
}

// anchorsOf returns those of the sections of a page, as GitHub makes them.
func anchorsOf(t *testing.T, page string) (all []string) {
	t.Helper()
	for line := range strings.Lines(proseOf(t, page)) {
		if title, ok := strings.CutPrefix(strings.TrimLeft(line, "#"), " "); ok && strings.HasPrefix(line, "#") {
			all = append(all, anchorOf(strings.TrimSpace(title)))
		}
	}
	return all
}

var dropped = regexp.MustCompile(`[^\p{L}\p{N} _-]`)

func anchorOf(title string) string {
	return strings.ReplaceAll(dropped.ReplaceAllString(strings.ToLower(title), ""), " ", "-")
}
