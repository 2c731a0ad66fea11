package kubernetes

import (
	"bufio"
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

// installTimeout bounds what the pod of the DaemonSet does.
const installTimeout = 2 * time.Minute

// TestThinInstall installs Lamina on a node with a systemd of its own, by the program of the DaemonSet, with what its pod
// has: the files, the socket of systemd, and no capability. It runs pods there, changes the configuration, and removes it all.
//
// It is in the guest for the cgroups: systemd takes all there are.
func TestThinInstall(t *testing.T) {
	guest.Require(t)
	n := newNode(t)
	n.cgroupParent = "lamina-test.slice"
	n.install("/etc/containerd/config.toml", []byte(n.containerdConfig()))
	n.startSystemd()
	image, config := filepath.Join(n.dir, "image"), filepath.Join(n.dir, "config")
	n.install(filepath.Join(image, "lamina"), mustRead(t, filepath.Join(os.Getenv(programsVariable), "lamina")))
	n.install(filepath.Join(image, "lamina.service"), mustRead(t, repository("packaging", "lamina.service")))
	for _, name := range []string{"config.toml", "cri.toml", "systemd.toml"} {
		n.install(filepath.Join(config, name), mustRead(t, repository("deploy", "kubernetes", "mixed", name)))
	}
	n.systemctl("start", "containerd.service")

	require.Contains(t, n.asPod("install", image, config), "restarting containerd.service")
	n.connect()
	n.pull("") // as a kubelet does that does not say for which handler; the layers for the other are unpacked when it needs them
	containers := map[string]*container{}
	for _, m := range []medium{union, thin} {
		containers[m.handler] = n.checkBeside(m)
	}
	pid := n.systemctl("show", "--property=MainPID", "lamina.service", "containerd.service")
	require.NotContains(t, n.asPod("install", image, config), "restarting", "as nothing has changed")
	require.Equal(t, pid, n.systemctl("show", "--property=MainPID", "lamina.service", "containerd.service"))

	changed := strings.ReplaceAll(string(mustRead(t, filepath.Join(config, "config.toml"))), "10GiB", "11GiB")
	n.install(filepath.Join(config, "config.toml"), []byte(changed))
	out := n.asPod("install", image, config)
	require.Contains(t, out, "restarting lamina.service")
	require.NotContains(t, out, "restarting containerd.service")
	for handler, c := range containers {
		require.Equal(t, "on", c.exec("echo on"), handler)
		require.Equal(t, "more", c.runAgain("echo more"), handler)
	}

	// A file with which containerd has no CRI plugin is taken back, and not tried again.
	cri := string(mustRead(t, filepath.Join(config, "cri.toml")))
	n.install(filepath.Join(config, "cri.toml"), []byte(strings.Replace(cri, `snapshotter = "lamina"`, `snapshotter = "nobody"`, 1)))
	require.Contains(t, n.asFailingPod("install", image, config), "CRI plugin did not start")
	n.awaitRuntime()
	require.NotContains(t, n.asFailingPod("install", image, config), "restarting")
	n.install(filepath.Join(config, "cri.toml"), []byte(cri))
	require.Contains(t, n.asPod("install", image, config), "restarting containerd.service")
	require.Equal(t, "still", containers[thin.handler].runAgain("echo still"))

	n.removePods()
	n.asPod("remove", image, config)
	for _, name := range []string{"/opt/lamina/bin", "/etc/systemd/system/lamina.service", "/etc/containerd/conf.d/lamina.toml", "/run/lamina/lamina.sock"} {
		require.NoFileExists(t, name)
	}
	require.FileExists(t, "/var/lib/lamina/lamina.db")
	require.Equal(t, "active", n.systemctl("is-active", "containerd.service"))
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

// startSystemd starts a systemd that is process 1 of a namespace, and does nothing of its own.
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
	systemd := exec.Command("/bin/sh", "-c", "mount -t proc none /proc && exec /lib/systemd/systemd --system --unit=idle.target --show-status=0")
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
	ctx, cancel := context.WithTimeout(n.t.Context(), installTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, "nsenter", append([]string{"-t", n.systemd, "-p", "-m", "systemctl"}, args...)...).CombinedOutput()
	require.NoError(n.t, err, "%s", out)
	return strings.TrimSpace(string(out))
}

// asPod runs what the pod runs until it has done its work, and then stops it. It returns what that printed.
func (n *node) asPod(verb, image, config string) string {
	n.t.Helper()
	start := time.Now()
	printed, done := n.tryAsPod(verb, image, config)
	n.t.Logf("lamina-node %s took %.1f s", verb, time.Since(start).Seconds())
	require.True(n.t, done, "lamina-node %s: %s", verb, printed)
	return printed
}

// asFailingPod is asPod of one that does not get it done.
func (n *node) asFailingPod(verb, image, config string) string {
	n.t.Helper()
	printed, done := n.tryAsPod(verb, image, config)
	require.False(n.t, done, "lamina-node %s: %s", verb, printed)
	return printed
}

func (n *node) tryAsPod(verb, image, config string) (output string, done bool) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), installTimeout)
	defer cancel()
	argv := []string{
		"-t", n.systemd, "-p", "setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--pdeathsig=TERM",
		filepath.Join(os.Getenv(programsVariable), "lamina-node"), verb, "--image", image, "--config", config,
	}
	cmd := exec.CommandContext(ctx, "nsenter", argv...)
	out, err := cmd.StdoutPipe()
	require.NoError(n.t, err)
	cmd.Stderr = cmd.Stdout
	require.NoError(n.t, cmd.Start())
	var printed []string
	lines := bufio.NewScanner(out)
	for lines.Scan() && lines.Text() != "done" {
		printed = append(printed, lines.Text())
	}
	if lines.Text() != "done" {
		require.Error(n.t, cmd.Wait())
		return strings.Join(printed, "\n"), false
	}
	if verb == "install" {
		check, err := exec.CommandContext(ctx, "nsenter", append(argv[:9:9], append([]string{"check"}, argv[10:]...)...)...).CombinedOutput()
		require.NoError(n.t, err, "%s", check)
	}
	require.NoError(n.t, cmd.Process.Signal(syscall.SIGTERM)) // and so it is sent to what nsenter has started
	require.False(n.t, lines.Scan(), "it ends, and says no more")
	_ = cmd.Wait()
	return strings.Join(printed, "\n"), true
}
