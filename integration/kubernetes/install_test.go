package kubernetes

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/integration/guest"
)

// systemdTimeout bounds what systemd is asked for.
const systemdTimeout = 2 * time.Minute

// cgroupDriver is what the administrator of a node has in its config.toml, so that containerd agrees with the kubelet.
const cgroupDriver = "[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n" +
	"[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.runc.options]\nSystemdCgroup = true\n"

// TestThinInstall has the DaemonSet install Lamina on a node with a systemd of its own: the pod of its manifests runs by the node's
// containerd, which it restarts under itself. Pods run there on both backends; the configuration and the image change, with files
// that containerd refuses and kills in between, and at last it is all removed.
//
// It is in the guest for the cgroups: systemd takes all there are.
func TestThinInstall(t *testing.T) {
	guest.Require(t)
	n := newNode(t)
	n.cgroupParent = "lamina-test.slice"
	programs := os.Getenv(programsVariable)
	n.registry.pushNode("first", programs)
	n.registry.pushNode("second", filepath.Join(programs, nextPrograms))
	n.install("/etc/containerd/config.toml", []byte(n.containerdConfig()+cgroupDriver))
	n.startSystemd()
	n.systemctl("start", "containerd.service")
	n.connect()

	installed := n.rollOut(rollout{overlay: "mixed", tag: "first"})
	installed.requireConfined()
	require.Contains(t, installed.done(), "restarting containerd.service")
	n.pull("") // as a kubelet does that does not say for which handler; the layers for the other are unpacked when it needs them
	containers := map[string]*container{}
	for _, m := range []medium{union, thin} {
		containers[m.handler] = n.checkBeside(m)
	}
	n.checkRestart()
	n.checkRollOut(containers)
	n.checkRefusal()
	require.Equal(t, "still", containers[thin.handler].runAgain("echo still"))
	n.checkRemoved()
}

// checkRestart has the pod started again: nothing has changed, so it restarts nothing.
func (n *node) checkRestart() {
	n.t.Helper()
	pids := func() string {
		return n.systemctl("show", "--property=MainPID", "lamina.service", "containerd.service")
	}
	before := pids()
	require.Zero(n.t, n.daemonPod.stop())
	n.daemonPod.restart()
	require.NotContains(n.t, n.daemonPod.done(), "restarting")
	require.Equal(n.t, before, pids())
}

// checkRollOut rolls a new image out, with a new configuration, while containers run.
func (n *node) checkRollOut(containers map[string]*container) {
	n.t.Helper()
	require.Contains(n.t, n.inSystemd("/opt/lamina/bin/lamina", "version"), "lamina first ")
	changed := strings.ReplaceAll(string(mustRead(n.t, repository("deploy", "kubernetes", "mixed", "config.toml"))), "10GiB", "11GiB")
	changing := n.rollOut(rollout{"mixed", "second", map[string]string{"config.toml": changed}})
	changing.killAt("restarting lamina.service")
	out := changing.done()
	require.NotContains(n.t, out, "restarting containerd.service")
	require.Contains(n.t, n.inSystemd("/opt/lamina/bin/lamina", "version"), "lamina second ")
	require.Equal(n.t, changed, string(mustRead(n.t, "/etc/lamina/config.toml")))
	for handler, c := range containers {
		require.Equal(n.t, "on", c.exec("echo on"), handler)
		require.Equal(n.t, "more", c.runAgain("echo more"), handler)
	}
}

// checkRefusal rolls out a file with which containerd has no CRI plugin. It is taken back, and not tried again.
func (n *node) checkRefusal() {
	n.t.Helper()
	cri := string(mustRead(n.t, repository("deploy", "kubernetes", "mixed", "cri.toml")))
	bad := strings.Replace(cri, `snapshotter = "lamina"`, `snapshotter = "nobody"`, 1)
	refused := n.rollOut(rollout{"mixed", "second", map[string]string{"cri.toml": bad}})
	require.Contains(n.t, refused.failed(), "CRI plugin did not start")
	n.awaitRuntime()
	refused.restart()
	require.NotContains(n.t, refused.failed(), "restarting")
	accepted := n.rollOut(rollout{overlay: "mixed", tag: "second"})
	accepted.killAt("restarting containerd.service")
	accepted.done()
}

// checkRemoved drains the node and has a pod remove it all.
func (n *node) checkRemoved() {
	n.t.Helper()
	n.daemonPod.delete()
	n.removeAllPods()
	removing := n.rollOut(rollout{overlay: "remove", tag: "second"})
	removing.done()
	for _, name := range []string{"/opt/lamina/bin", "/etc/systemd/system/lamina.service", "/etc/containerd/conf.d/lamina.toml", "/run/lamina/lamina.sock"} {
		require.NoFileExists(n.t, name)
	}
	require.FileExists(n.t, "/var/lib/lamina/lamina.db")
	require.Equal(n.t, "active", n.systemctl("is-active", "containerd.service"))
	removing.delete()
	n.removePods()
}

// checkBeside runs a pod on a node with both: it has what its RuntimeClass says, of an image that both use.
func (n *node) checkBeside(m medium) *container {
	n.t.Helper()
	p := n.runPod(m.handler, m.handler, 0)
	c := p.idle()
	require.Equal(n.t, m.mounts, c.rootMount())
	snapshotter := n.client.SnapshotService(m.snapshotter)
	for _, id := range []string{p.id, c.id} {
		_, err := snapshotter.Stat(n.t.Context(), id)
		require.NoError(n.t, err)
	}
	c.write("/data", 8)
	p.awaitLook(m) // one that may have begun before
	p.awaitLook(m)
	usage, err := snapshotter.Usage(n.t.Context(), c.id)
	require.NoError(n.t, err)
	require.GreaterOrEqual(n.t, usage.Size, int64(8*mib))
	n.t.Logf("the writable layer of a pod of %s has %d bytes; the kubelet is told %v", m.handler, usage.Size, c.writableLayer())
	if m.snapshotter == union.snapshotter { // containerd 2.4 looks at the uses of the default snapshotter only
		require.Equal(n.t, usage.Size, c.writableLayer().bytes)
	}
	return c
}

// startSystemd starts a systemd that is process 1 of a namespace, and does nothing of its own. Mounts are shared, as it has them
// where it does not find itself in a container.
func (n *node) startSystemd() {
	n.t.Helper()
	const units = "/etc/systemd/system"
	wanted, err := filepath.Glob("/lib/systemd/system/*.target.wants/*")
	require.NoError(n.t, err)
	require.NotEmpty(n.t, wanted, "the units of systemd")
	require.NoError(n.t, os.MkdirAll(units, 0o755))
	for _, unit := range wanted {
		if name := filepath.Join(units, filepath.Base(unit)); filepath.Ext(name) != ".target" {
			_ = os.Symlink("/dev/null", name) // several want the same
		}
	}
	program, err := filepath.Abs(repository("bin", "tools", "containerd"))
	require.NoError(n.t, err)
	n.install(filepath.Join(units, "idle.target"), []byte("[Unit]\nDescription=Nothing\nDefaultDependencies=no\n"))
	n.install(filepath.Join(units, "containerd.service"), []byte("[Service]\nType=notify\nDelegate=yes\nKillMode=process\n"+
		"Environment=PATH="+programPath()+"\nExecStart="+program+"\n"))
	for _, unit := range []string{"containerd", "lamina", "lamina-containerd"} {
		n.install(filepath.Join(units, unit+".service.d", "log.conf"), fmt.Appendf(nil, "[Service]\nStandardError=append:/run/%s.log\n", unit))
	}
	systemd := exec.Command("/bin/sh", "-c", "mount -t proc none /proc && mount --make-rshared / && exec /lib/systemd/systemd --system --unit=idle.target --show-status=0")
	systemd.Env = []string{"container=lamina", "PATH=" + os.Getenv("PATH")}
	systemd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}
	log, err := os.Create(filepath.Join(n.dir, "systemd.log"))
	require.NoError(n.t, err)
	systemd.Stdout, systemd.Stderr = log, log
	require.NoError(n.t, systemd.Start())
	n.systemd = fmt.Sprint(systemd.Process.Pid)
	n.t.Cleanup(func() {
		if n.t.Failed() {
			for _, name := range []string{log.Name(), "/run/containerd.log", "/run/lamina.log", "/run/lamina-containerd.log"} {
				text, _ := os.ReadFile(name)
				n.t.Logf("%s:\n%s", name, text)
			}
		}
		_ = exec.Command("nsenter", "-t", n.systemd, "-p", "-m", "systemctl", "stop", "containerd.service", "lamina.service").Run()
		_ = systemd.Process.Kill() // nobody waits for it: it waits for all that it has started
		_ = log.Close()
	})
	require.NoError(n.t, poll(func() error {
		_, err := os.Stat("/run/systemd/private")
		return err
	}))
}

func (n *node) systemctl(args ...string) string {
	n.t.Helper()
	return n.inSystemd(append([]string{"systemctl"}, args...)...)
}

// inSystemd runs a program where systemd does, and returns what it prints.
func (n *node) inSystemd(argv ...string) string {
	n.t.Helper()
	out, err := n.tryInSystemd(argv...)
	require.NoError(n.t, err, "%s", out)
	return out
}

func (n *node) tryInSystemd(argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(n.t.Context(), systemdTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, "nsenter", append([]string{"-t", n.systemd, "-p", "-m"}, argv...)...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}
