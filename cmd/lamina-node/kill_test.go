//go:build failpoint

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// What the process that is killed is told.
const (
	verbVariable = "LAMINA_NODE_VERB"
	rootVariable = "LAMINA_NODE_ROOT"
)

// A kill is of one who does something to a node on which Lamina is installed, or not, and what is done then.
type kill struct {
	verb, then string
	installed  bool
	least      int // of the steps
}

// points are the steps, each at its place in the code. A service is restarted between two of them.
func points(t *testing.T) (names []string) {
	t.Helper()
	sources, err := filepath.Glob("*.go")
	require.NoError(t, err)
	hit := regexp.MustCompile(`failpoint\.Hit\("([^"]*)"\)`)
	for _, source := range sources {
		text, err := os.ReadFile(source)
		require.NoError(t, err)
		for _, found := range hit.FindAllSubmatch(text, -1) {
			names = append(names, string(found[1]))
		}
	}
	require.NotEmpty(t, names)
	return names
}

// TestKilled kills what installs, updates and removes at each of its steps. A containerd that knows of Lamina then has one that can start,
// as after a boot, and the next run completes: both services run with the files that there are.
func TestKilled(t *testing.T) {
	if verb := os.Getenv(verbVariable); verb != "" {
		n := testNodeIn(t, os.Getenv(rootVariable))
		n.begin = n.notes
		n.do(verb)
		return
	}
	for name, k := range map[string]kill{
		"install": {"install", "install", false, 25}, "update": {"install", "install", true, 20}, "refused update": {"refuse", "refuse", true, 30},
		"remove": {"remove", "remove", true, 15}, "install, then remove": {"install", "remove", false, 25},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			kills := 0
			for _, point := range points(t) {
				before := kills
				for nth := 1; k.at(t, fmt.Sprint(point, ":", nth)); nth++ {
					kills++
				}
				require.True(t, kills > before || point == "node.removed" && k.verb == "install", "nothing comes by %s", point)
			}
			t.Logf("%d kills", kills)
			require.GreaterOrEqual(t, kills, k.least)
		})
	}
}

// at says whether there was that step to be killed at.
func (k kill) at(t *testing.T, step string) bool {
	t.Helper()
	n := newTestNode(t)
	n.begin = n.notes
	require.NoError(t, n.notes(containerdUnit))
	if k.installed {
		require.NoError(t, n.install(t.Context()))
		for _, name := range []string{"image/lamina", "config/config.toml", "config/cri.toml"} {
			n.write(name, "second")
		}
	}
	n.stopServing() // the process has its own
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
	cmd.Env = append(os.Environ(), verbVariable+"="+k.verb, rootVariable+"="+n.root, "LAMINA_FAILPOINT="+step)
	out, err := cmd.CombinedOutput()
	if err == nil {
		return false
	}
	ended := (*exec.ExitError)(nil)
	require.ErrorAs(t, err, &ended)
	require.Equal(t, syscall.SIGKILL, ended.Sys().(syscall.WaitStatus).Signal(), "%s", out)
	n.requireBoots(step)

	again := testNodeIn(t, n.root)
	again.begin = again.notes
	again.do(k.then)
	again.requireDone(k.then, step)
	return true
}

func (n *testNode) do(verb string) {
	n.t.Helper()
	switch verb {
	case "remove":
		require.NoError(n.t, n.remove(n.t.Context()))
	case "refuse":
		n.servedUnless("second")
		require.Error(n.t, n.install(n.t.Context()))
	default:
		require.NoError(n.t, n.install(n.t.Context()))
	}
}

// notes has a service write down what it was restarted with.
func (n *testNode) notes(unit string) error {
	return os.WriteFile(n.at(unit), []byte(n.has(unit)), 0o600)
}

// has are the files that a service would be restarted with now.
func (n *testNode) has(unit string) string {
	files := n.told()
	if unit == laminaUnit {
		files = n.served()
	}
	var text strings.Builder
	for _, f := range files {
		content, err := os.ReadFile(f.to)
		fmt.Fprintf(&text, "%s: %s%t\n", f.to, content, errors.Is(err, os.ErrNotExist))
	}
	return text.String()
}

// requireBoots says that the daemon can start if containerd is told of it.
func (n *testNode) requireBoots(step string) {
	n.t.Helper()
	told, err := n.anyExists(containerdFiles[1:])
	require.NoError(n.t, err)
	if !told {
		return
	}
	for _, name := range []string{program, laminaConfig, filepath.Join(units, laminaUnit), filepath.Join(units, laminaUnit+".d", "node.conf")} {
		require.FileExists(n.t, n.at(name), step)
	}
}

// files are those in directories, and the directories that these have.
func (n *testNode) files(dirs ...string) (names []string) {
	n.t.Helper()
	for _, dir := range dirs {
		entries, err := os.ReadDir(n.at(dir))
		if !errors.Is(err, os.ErrNotExist) {
			require.NoError(n.t, err)
		}
		for _, e := range entries {
			names = append(names, filepath.Join(dir, e.Name()))
		}
	}
	return names
}

func (n *testNode) requireDone(verb, step string) {
	n.t.Helper()
	restarted := []string{containerdUnit, laminaUnit}
	switch verb {
	case "install":
		require.NoError(n.t, n.check(n.t.Context()), step)
	case "refuse":
		n.requireOnNode("first")
		require.FileExists(n.t, n.at(refusedWith), step)
	default:
		restarted = restarted[:1]
		require.Empty(n.t, n.files(filepath.Dir(servedWith), units, containerdConf), step)
		require.NoFileExists(n.t, n.at(nextOf(laminaConfig)), step)
	}
	for _, unit := range restarted {
		require.True(n.t, is(n.at(unit), n.has(unit)), "after a kill at %s, %s does not run with what there is", step, unit)
	}
}
