package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestCaptures holds what lamina prints of a real root to what the README shows; make captures puts it there, of a larger image.
func TestCaptures(t *testing.T) {
	requireRoot(t)
	captures, archive := os.Getenv("LAMINA_CAPTURES") == "1", "small.tar"
	if captures {
		archive = "debian.tar"
	}
	m := openManual(t, union, union.toml())
	defer m.end()
	require.NoError(t, os.Mkdir(filepath.Join(m.dir, "etc/containerd/conf.d"), 0o700))
	m.write(filepath.Join(m.dir, "etc/containerd/conf.d/lamina.toml"), m.daemon.containerdConfig(containerd2.configVersion))
	m.control(call{verb: "start", unit: "containerd", done: make(chan struct{})})
	m.importImage(m.snapshotter, archive)
	image := strings.Fields(m.ctr("images", "ls", "--quiet"))[0]
	for _, id := range []string{"web", "db"} {
		m.ctr("run", "--detach", image, id, "sleep", "1000")
	}
	m.ctr("snapshots", "usage") // which records what layers take up
	readme := filepath.Join(repository(t), "README.md")
	page, err := os.ReadFile(readme)
	require.NoError(t, err)
	text := string(page)
	for _, args := range []string{"tree", "status"} {
		out, err := exec.CommandContext(t.Context(), filepath.Join(m.dir, "bin/lamina"), args).Output()
		require.NoError(t, err)
		text = withCapture(t, text, "lamina "+args, strings.TrimRight(m.host.Replace(string(out)), "\n"))
	}
	if captures {
		require.NoError(t, os.WriteFile(readme, []byte(text), 0o644)) //nolint:gosec // a page of the repository
		return
	}
	require.Equal(t, anywhere(string(page)), anywhere(text), "make captures mends it")
}

// anywhere gives a page without what depends on the disk of its host, whose file system may count no inodes, and one layer for all
// of an image.
func anywhere(page string) string {
	lines := strings.Split(regexp.MustCompile(`(?m)^(quotas|disk|inodes) .*\n`).ReplaceAllString(masked(page), ""), "\n")
	return strings.Join(slices.Compact(lines), "\n")
}

// withCapture puts what a command has printed into the block of a page that has
// a comment of that name above it.
func withCapture(t *testing.T, page, name, out string) string {
	t.Helper()
	head := "<!-- capture: " + name + " -->\n```text\n"
	before, rest, found := strings.Cut(page, head)
	require.True(t, found, "the page has no block for %s", name)
	_, after, found := strings.Cut(rest, "\n```\n")
	require.True(t, found)
	return before + head + "# " + name + "\n" + out + "\n```\n" + after
}
