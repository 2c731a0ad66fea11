//go:build failpoint

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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

// points are the steps of file.go. A service is restarted between two of them.
var points = []string{"node.written", "node.replaced", "node.removed"}

// TestKilled kills what installs, updates and removes at each of its steps. A containerd that knows of Lamina then has one that can start,
// as after a boot, and the next run completes: both services run with the files that there are.
func TestKilled(t *testing.T) {
	if verb := os.Getenv(verbVariable); verb != "" {
		n := testNodeIn(t, os.Getenv(rootVariable))
		n.begin = n.notes
		require.NoError(t, n.do(t, verb))
		return
	}
	for name, c := range map[string]struct {
		verb      string
		installed bool
		kills     int // at least
	}{
		"install": {"install", false, 25}, "update": {"install", true, 20}, "remove": {"remove", true, 15},
	} {
		t.Run(name, func(t *testing.T) {
			kills := 0
			for _, point := range points {
				for nth := 1; killed(t, c.verb, c.installed, fmt.Sprint(point, ":", nth)); nth++ {
					kills++
				}
			}
			t.Logf("%d kills", kills)
			require.GreaterOrEqual(t, kills, c.kills)
		})
	}
}

// killed says whether there was a step to be killed at.
func killed(t *testing.T, verb string, installed bool, step string) bool {
	t.Helper()
	n := newTestNode(t)
	n.begin = n.notes
	if installed {
		require.NoError(t, n.install(t.Context()))
		for _, name := range []string{"image/lamina", "config/config.toml", "config/cri.toml"} {
			n.write(name, "second")
		}
	}
	n.server.Stop() // the process has its own
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
	cmd.Env = append(os.Environ(), verbVariable+"="+verb, rootVariable+"="+n.root, "LAMINA_FAILPOINT="+step)
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
	require.NoError(t, again.do(t, verb), step)
	again.requireDone(verb, step)
	return true
}

func (n *testNode) do(t *testing.T, verb string) error {
	t.Helper()
	if verb == "remove" {
		return n.remove(t.Context())
	}
	return n.install(t.Context())
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

func (n *testNode) requireDone(verb, step string) {
	n.t.Helper()
	restarted := []string{containerdUnit}
	if verb == "install" {
		restarted = append(restarted, laminaUnit)
		require.NoError(n.t, n.check(n.t.Context()), step)
	} else {
		for _, name := range append([]string{program, filepath.Join(units, laminaUnit)}, containerdFiles...) {
			require.NoFileExists(n.t, n.at(name), step)
		}
	}
	for _, unit := range restarted {
		require.True(n.t, is(n.at(unit), n.has(unit)), "after a kill at %s, %s does not run with what there is", step, unit)
	}
}
