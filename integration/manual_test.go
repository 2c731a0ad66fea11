package integration

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/integration/guest"
)

// manualPages are read by operators, who do what they say in this order.
var manualPages = []string{
	"docs/operating.md", "docs/configuration.md", "docs/union.md", "docs/thin.md", "docs/containers.md", "docs/rootless.md",
	"docs/admin.md", "docs/metrics.md", "docs/kubernetes.md", "README.md",
}

// passageTime is what the commands between two sentences may take.
const passageTime = time.Minute

// TestManual does what the pages for operators say, on the union backend.
func TestManual(t *testing.T) {
	requireRoot(t)
	openManual(t, union, "pprof = \"PPROF\"\n"+union.toml()).follow()
}

// TestThinManual does the same with a pool.
func TestThinManual(t *testing.T) {
	guest.Require(t)
	openManual(t, thinExt4, thinExt4.toml()+"data_size = \"1GiB\"\nvolume_size = \"512MiB\"\n").follow()
}

// A manual is a host on which its pages are tried: a daemon, a containerd, and
// beside them the programs that the pages call, where they differ from a host's.
type manual struct {
	*node
	text  *strings.Replacer // from the paths and names of the pages to those here
	host  *strings.Replacer // from those here to those of the pages
	calls chan call         // of systemctl
}

// A call is one of systemctl. What it does is done by the goroutine of the
// test, which may fail it.
type call struct {
	verb, unit string
	done       chan struct{}
}

func openManual(t *testing.T, b backend, toml string) *manual {
	t.Helper()
	dir := mustTempDir(t)
	n := &node{t: t, dir: dir, snapshotter: "lamina", programs: mustHave(t, containerd2.dir)}
	for _, name := range []string{"bin", "etc/containerd", "lib", "backups", "tmp"} {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, name), 0o700))
	}
	for _, name := range []string{session, dir} { // ids of a user namespace go through these to their container
		require.NoError(t, os.Chmod(name, 0o711))
	}
	d := newDaemon(t, filepath.Join(dir, "lamina"), b, "")
	d.rootDir = filepath.Join(dir, "lib/lamina")
	pprof := filepath.Join(d.dir, "pprof.sock")
	require.NoError(t, d.configure(strings.Replace(toml, "PPROF", pprof, 1)+n.contentStore()))
	archive, err := os.ReadFile(mustHave(t, ".cache/images/small.tar"))
	require.NoError(t, err)
	names := []string{
		"/etc/lamina/config.toml", d.config(),
		"/run/lamina/", d.dir + "/",
		"/var/lib/lamina", d.root(),
		"/var/lib/containerd", filepath.Join(dir, "root"),
		"/var/lib", filepath.Join(dir, "lib"),
		"/var/backups", filepath.Join(dir, "backups"),
		"/etc/containerd", filepath.Join(dir, "etc/containerd"),
		"docker.io/library/debian:bookworm", startRegistry(t, archive),
		"contrib/", filepath.Join(repository(t), "contrib") + "/",
	}
	here := slices.Clone(names)
	slices.Reverse(here) // each pair the other way round
	m := &manual{node: n, calls: make(chan call), host: strings.NewReplacer(append(here, namespaceOf(session), "default")...), text: strings.NewReplacer(append(names,
		"?seconds=20", "?seconds=1", // the test has not so long
		"-n 60 -d 1s", "-n 2 -d 1s",
		"grow 50GiB", "grow 64MiB",
		"max-size=21474836480", "max-size=1073741824",
	)...)}
	n.write(filepath.Join(dir, "etc/containerd/config.toml"), n.config(containerd2.configVersion, filepath.Join(dir, "etc/containerd/conf.d/*.toml")))
	m.program("lamina", fmt.Sprintf("case $1 in completion|version) exec %[1]s \"$@\";; esac\nexec %[1]s \"$@\" --config %[2]s",
		mustBuild(t, buildLamina), d.config()))
	m.program("promtool", "exec "+filepath.Join(repository(t), "bin/tools/promtool")+" \"$@\"")
	m.program("systemctl", "verb=$1; shift; for unit; do curl -sSf -X POST --unix-socket "+m.manager()+" http://systemd/$verb/$unit; done")
	n.daemon = d
	d.process = d.serve(t)
	return m
}

func (m *manual) program(name, script string) {
	m.t.Helper()
	require.NoError(m.t, os.WriteFile(filepath.Join(m.dir, "bin", name), []byte("#!/bin/bash\nset -e\n"+script+"\n"), 0o700))
}

// manager is the socket at which systemctl asks.
func (m *manual) manager() string { return filepath.Join(m.dir, "systemd.sock") }

// follow runs what the pages have for the backend.
func (m *manual) follow() {
	defer m.end()
	m.manage()
	count := 0
	for _, page := range manualPages {
		passages := passagesOf(m.t, page)
		require.NotEmpty(m.t, passages, page)
		for _, p := range passages {
			if slices.Contains(p.on, m.daemon.backend.name) {
				m.run(p)
				count++
			}
		}
	}
	require.Greater(m.t, count, 5)
}

// manage answers systemctl.
func (m *manual) manage() {
	m.t.Helper()
	l, err := net.Listen("unix", m.manager())
	require.NoError(m.t, err)
	server := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
		c := call{verb: parts[0], unit: parts[len(parts)-1], done: make(chan struct{})}
		select {
		case m.calls <- c:
		case <-r.Context().Done():
			return
		}
		<-c.done
	})}
	go func() { _ = server.Serve(l) }()
	m.t.Cleanup(func() { _ = server.Close() })
}

// run runs the commands of a passage, as a shell does that ends with the first
// one that fails, and compares what they print with what the page shows.
func (m *manual) run(p passage) {
	m.t.Helper()
	begun := time.Now()
	ctx, cancel := context.WithTimeout(m.t.Context(), passageTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euxo", "pipefail", "-c", m.text.Replace(p.commands))
	cmd.Dir = filepath.Join(m.dir, "tmp")
	cmd.Env = append(append(os.Environ(), m.env()...), "CONTAINERD_SNAPSHOTTER=", "CONTAINERD_ADDRESS="+m.socket(),
		"CONTAINERD_NAMESPACE="+namespaceOf(session), "PATH="+filepath.Join(m.dir, "bin")+":"+m.programs+":"+os.Getenv("PATH"))
	cmd.WaitDelay = time.Second
	var out, trace bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &trace
	ended := make(chan error, 1)
	go func() { ended <- cmd.Run() }()
	for {
		select {
		case c := <-m.calls:
			m.control(c)
		case err := <-ended:
			m.t.Logf("%s:%d: %s\n%s\n%s", p.page, p.line, time.Since(begun).Round(time.Millisecond), &trace, &out)
			require.NoError(m.t, err, "%s:%d", p.page, p.line)
			if printed := m.host.Replace(out.String()); p.shown != "" {
				require.True(m.t, shows(p.shown, printed), "%s:%d: it prints\n%s", p.page, p.line, printed)
			}
			return
		}
	}
}

// control does what systemctl was called for.
func (m *manual) control(c call) {
	m.t.Helper()
	defer close(c.done)
	if c.verb != "start" {
		switch {
		case c.unit == "lamina" && !m.daemon.ended():
			m.daemon.stop()
		case c.unit == "containerd" && m.containerd != nil && !m.containerd.ended():
			m.containerd.stop()
		}
	}
	switch {
	case c.verb == "stop":
	case c.verb != "start" && c.verb != "restart":
		m.t.Fatalf("systemctl %s: the manual's systemctl starts, stops and restarts", c.verb)
	case c.unit == "lamina":
		m.daemon.restart()
	case c.unit == "containerd":
		m.containerd = startProcess(m.t, m.dir, "containerd", m.env(), filepath.Join(m.programs, "containerd"),
			"--config", filepath.Join(m.dir, "etc/containerd/config.toml"))
	default:
		m.t.Fatalf("systemctl %s %s: there is no such unit", c.verb, c.unit)
	}
}

// end ends the containers that the pages have run, and both daemons.
func (m *manual) end() {
	if m.containerd == nil {
		m.daemon.stop()
		return
	}
	m.cleanup()
}

// TestManualMarks holds the pages to their marks: what is run, and a reason for
// each block that is not.
func TestManualMarks(t *testing.T) {
	run, left := 0, 0
	for _, page := range manualPages {
		for _, p := range passagesOf(t, page) {
			if len(p.on) > 0 {
				run++
				continue
			}
			left++
			require.NotEmpty(t, p.why, "%s:%d", page, p.line)
		}
	}
	t.Logf("%d blocks are run, %d are not", run, left)
	require.Greater(t, run, left)
}
