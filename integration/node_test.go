package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A containerd is one that the tests run Lamina under.
type containerd struct {
	name          string
	dir           string // where its programs are, from the root of the repository
	configVersion int
}

var (
	containerd2      = containerd{"containerd-2", "bin/tools", 3}
	containerdDebian = containerd{"containerd-debian", ".cache/debian-containerd/usr/bin", 2}
)

// forEachContainerd runs a test under each containerd.
func forEachContainerd(t *testing.T, test func(*testing.T, containerd)) {
	t.Helper()
	requireRoot(t)
	for _, c := range []containerd{containerd2, containerdDebian} {
		t.Run(c.name, func(t *testing.T) { test(t, c) })
	}
}

// A node is a containerd with a Lamina beside it, under a directory of its own.
type node struct {
	t           *testing.T
	dir         string
	programs    string
	snapshotter string
	containerd  *process
	daemon      *daemon // nil where the snapshotter is another
	unpacks     int     // how many layers of an image containerd unpacks at once; 0 is its default
	traces      string  // the collector that containerd sends traces to
}

// startNode starts a containerd that calls a Lamina of its own.
//
// LAMINA_TEST_SNAPSHOTTER=overlayfs puts a snapshotter of containerd's own in
// Lamina's place: to tell a fault of Lamina from one of the test or the host.
func startNode(t *testing.T, c containerd, b backend) *node {
	t.Helper()
	dir := mustTempDir(t)
	n := &node{t: t, dir: dir, snapshotter: "lamina"}
	if s := os.Getenv("LAMINA_TEST_SNAPSHOTTER"); s != "" {
		n.snapshotter = s
	} else {
		n.daemon = startDaemonWith(t, filepath.Join(dir, "lamina"), b, b.toml()+n.contentStore())
	}
	n.startBeside(c)
	return n
}

// startBeside starts the containerd that calls the node's daemon, if it has one.
func (n *node) startBeside(c containerd) {
	n.t.Helper()
	var imports string
	if n.daemon != nil {
		imports = filepath.Join(n.dir, "lamina.toml")
		n.write(imports, n.daemon.containerdConfig(c.configVersion))
	}
	n.start(c, filepath.Join(mustHave(n.t, c.dir, "containerd")), imports)
}

// start starts the containerd at program with a config of its version, and the
// file imports as part of it.
func (n *node) start(c containerd, program, imports string) {
	n.t.Helper()
	n.programs = mustHave(n.t, c.dir)
	config := filepath.Join(n.dir, "containerd.toml")
	n.write(config, n.config(c.configVersion, imports))
	n.containerd = startProcess(n.t, n.dir, "containerd", n.env(), program, "--config", config)
	// Runs before the processes are killed: containers need a containerd to end.
	n.t.Cleanup(n.cleanup)
}

func (n *node) write(name, content string) {
	n.t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

// config returns a config for containerd that keeps to the node's directory and
// loads nothing that needs a network or that no test uses.
func (n *node) config(version int, imports string) string {
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	say("version = %d", version)
	say("root = %q", filepath.Join(n.dir, "root"))
	say("state = %q", filepath.Join(n.dir, "state"))
	if imports != "" {
		say("imports = [%q]", imports)
	}
	say("disabled_plugins = [")
	for _, id := range []string{
		"cri.v1.images", "cri.v1.runtime", "grpc.v1.cri", "podsandbox.controller.v1.podsandbox", "nri.v1.nri",
		"internal.v1.opt", "snapshotter.v1.aufs", "snapshotter.v1.blockfile",
		"snapshotter.v1.btrfs", "snapshotter.v1.devmapper", "snapshotter.v1.erofs", "snapshotter.v1.zfs",
	} {
		say("  %q,", "io.containerd."+id)
	}
	if n.traces == "" {
		say("  \"io.containerd.tracing.processor.v1.otlp\",")
	}
	say("]")
	say("[grpc]\n  address = %q", n.socket())
	say("[debug]\n  level = \"debug\"")
	if version >= 3 {
		// The transfer service unpacks for the snapshotters named here only.
		if n.unpacks > 0 {
			say("[plugins.\"io.containerd.transfer.v1.local\"]\n  max_concurrent_unpacks = %d", n.unpacks)
		}
		for _, s := range []string{n.snapshotter, "overlayfs"} {
			say("[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]")
			say("  platform = \"linux\"\n  snapshotter = %q", s)
		}
	}
	return b.String()
}

// contentStore tells a daemon, in its configuration, of the node's containerd.
func (n *node) contentStore() string { return fmt.Sprintf("[containerd]\naddress = %q\n", n.socket()) }

func (n *node) socket() string { return filepath.Join(n.dir, "containerd.sock") }

// env is the environment of containerd, which finds its shim by PATH, and of
// ctr, which takes the snapshotter from it.
func (n *node) env() []string {
	env := []string{
		"PATH=" + n.programs + ":" + os.Getenv("PATH"),
		"CONTAINERD_SNAPSHOTTER=" + n.snapshotter,
		"CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS=true",
	}
	if n.traces != "" {
		env = append(env, "OTEL_EXPORTER_OTLP_ENDPOINT="+n.traces, "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf")
	}
	return env
}

// ctr runs a ctr command and returns what it prints.
func (n *node) ctr(args ...string) string {
	n.t.Helper()
	out, err := n.tryCtr(args...)
	if err != nil {
		n.t.Fatal(err)
	}
	return out
}

// tryCtr is ctr for a command that may fail.
func (n *node) tryCtr(args ...string) (string, error) {
	return n.tryCtrWith(n.snapshotter, args...)
}

// tryCtrWith is tryCtr with another snapshotter than the node's.
func (n *node) tryCtrWith(snapshotter string, args ...string) (string, error) {
	// Not the test's context: it ends before the cleanup does.
	return command(background, append(n.env(), "CONTAINERD_SNAPSHOTTER="+snapshotter),
		append([]string{filepath.Join(n.programs, "ctr"), "--address", n.socket(), "--namespace", namespaceOf(session)}, args...)...)
}

// rows runs a ctr command that prints a table and returns its rows.
func (n *node) rows(args ...string) [][]string {
	n.t.Helper()
	return tableRows(n.ctr(args...))
}

// tableRows cuts a table into rows of fields, without its head.
func tableRows(table string) (rows [][]string) {
	for _, line := range strings.Split(strings.TrimSpace(table), "\n")[1:] {
		rows = append(rows, strings.Fields(line))
	}
	return rows
}

// cleanup ends the containers of a node, shows its logs if the test failed, and
// stops it.
func (n *node) cleanup() {
	if n.t.Failed() {
		n.t.Logf("the end of containerd's log:\n%s", n.containerd.tail())
		if n.daemon != nil {
			n.t.Logf("the end of Lamina's log:\n%s", n.daemon.tail())
		}
	}
	if !n.containerd.ended() {
		for _, id := range n.words("containers", "ls", "--quiet") {
			n.removeContainer(id)
		}
		n.containerd.stop()
	}
	if n.daemon != nil && !n.daemon.ended() {
		n.daemon.stop()
	}
	n.discard()
}

// discard removes the node's directory, unless something is still in use there.
func (n *node) discard() {
	// Shims end a moment after their containers.
	err := poll(stopTimeout, func() error {
		left, err := findLeaks(n.dir)
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("left behind:\n%s", left)
		}
		return err
	})
	if err != nil {
		n.t.Error(err)
		return
	}
	if err := os.RemoveAll(n.dir); err != nil {
		n.t.Error(err)
	}
}

// words runs a ctr command that prints words. Where it fails there are none.
func (n *node) words(args ...string) []string {
	out, _ := n.tryCtr(args...)
	return strings.Fields(out)
}

// removeContainer ends and removes a container, whatever state it is in.
func (n *node) removeContainer(id string) {
	_, _ = n.tryCtr("tasks", "kill", "--signal", "KILL", id)
	_, _ = n.tryCtr("tasks", "delete", "--force", id)
	_, _ = n.tryCtr("containers", "delete", id)
	_, _ = n.tryCtr("snapshots", "delete", id)
}
