package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/go-logr/logr"
	"github.com/stretchr/testify/require"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	remote "k8s.io/cri-client/pkg"
	"k8s.io/klog/v2"
)

const (
	containerdSocket = "/run/containerd/containerd.sock"
	// criNamespace is the namespace in which containerd keeps what it has by the CRI API.
	criNamespace = "k8s.io"
	callTimeout  = time.Minute
)

// A node is a containerd with its CRI plugin, and a Lamina, configured by the files of one directory of deploy/kubernetes.
type node struct {
	t          *testing.T
	dir        string
	lamina     *process
	containerd *process
	registry   registry
	runtime    internalapi.RuntimeService
	images     internalapi.ImageManagerService
	client     *containerd.Client
	small      string // the image of containers

	cgroupParent string // of pods
	systemd      string // the process, if the node has one
	daemonPod    *daemonPod
	rollouts     int
}

// background outlives a test, for what its cleanup does.
var background = context.Background()

func repository(elem ...string) string {
	return filepath.Join(append([]string{"..", ".."}, elem...)...)
}

// programPath is where daemons find containerd's shim and runc.
func programPath() string {
	for _, dir := range []string{"bin/tools", "bin/kubernetes"} {
		if _, err := os.Stat(repository(dir)); err != nil {
			panic(fmt.Sprintf("%v: run integration/setup", err))
		}
	}
	kubernetes, err := filepath.Abs(repository("bin/kubernetes"))
	if err != nil {
		panic(err)
	}
	tools, err := filepath.Abs(repository("bin/tools"))
	if err != nil {
		panic(err)
	}
	return kubernetes + ":" + tools + ":" + os.Getenv("PATH")
}

// startNode starts a node as the overlay of that name configures it.
func startNode(t *testing.T, overlay string) *node {
	t.Helper()
	requireRoot(t)
	n := newNode(t)
	deployed := repository("deploy", "kubernetes", overlay)
	n.install("/etc/lamina/config.toml", mustRead(t, filepath.Join(deployed, "config.toml")))
	daemon := filepath.Join(os.Getenv(programsVariable), "lamina")
	printed, err := exec.Command(daemon, "config", "containerd").Output()
	require.NoError(t, err)
	n.install("/etc/containerd/conf.d/lamina.toml", printed)
	n.install("/etc/containerd/conf.d/lamina-cri.toml", mustRead(t, filepath.Join(deployed, "cri.toml")))
	n.install("/etc/containerd/config.toml", []byte(n.containerdConfig()))

	n.lamina = startProcess(t, n.dir, daemon, "serve")
	program, err := filepath.Abs(repository("bin", "tools", "containerd"))
	require.NoError(t, err)
	n.containerd = startProcess(t, n.dir, program)
	n.connect()
	t.Cleanup(func() {
		n.removePods()
		n.containerd.end(syscall.SIGTERM)
		n.lamina.end(syscall.SIGTERM)
	})
	return n
}

// newNode is a node on which nothing runs yet, with a registry that has its images.
func newNode(t *testing.T) *node {
	t.Helper()
	klog.SetLogger(logr.Discard())                     // the client says each error twice
	t.Cleanup(func() { require.NoError(t, forget()) }) // the last thing: the next test has a node of its own
	n := &node{t: t, dir: t.TempDir(), registry: startRegistry(t), cgroupParent: cgroupParent}
	n.small = n.registry.name("lamina/small")
	n.registry.pushPause("lamina/pause", repository(".cache", "busybox"))
	n.registry.pushArchive("lamina/small", repository(".cache", "images", "small.tar"))
	return n
}

// forget removes what a node had.
func forget() (err error) {
	for _, dir := range []string{"/var/lib", "/opt", "/etc/lamina", "/etc/containerd", "/etc/systemd", "/run/lamina", "/run/containerd", "/run/systemd"} {
		entries, e := os.ReadDir(dir)
		if !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
		for _, entry := range entries {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, entry.Name())))
		}
	}
	return err
}

func mustRead(t *testing.T, name string) []byte {
	t.Helper()
	content, err := os.ReadFile(name)
	require.NoError(t, err)
	return content
}

func (n *node) install(name string, content []byte) {
	n.t.Helper()
	require.NoError(n.t, os.MkdirAll(filepath.Dir(name), 0o755))
	require.NoError(n.t, os.WriteFile(name, content, 0o644))
}

// containerdConfig is what a node has before Lamina is installed, but that it looks for uses every second and that its
// sandboxes are of an image that is here.
func (n *node) containerdConfig() string {
	return fmt.Sprintf(`version = 3
imports = ["/etc/containerd/conf.d/*.toml"]
disabled_plugins = [
  "io.containerd.nri.v1.nri", "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.zfs",
]
[plugins."io.containerd.cri.v1.images"]
  stats_collect_period = 1
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = "/etc/containerd/certs.d"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = %q
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true # or it needs CAP_SYS_RESOURCE, which a container that CI runs in lacks
`, n.registry.name("lamina/pause"))
}

func (n *node) connect() {
	n.t.Helper()
	var err error
	ctx := n.t.Context()
	endpoint := "unix://" + containerdSocket
	n.runtime, err = remote.NewRemoteRuntimeServiceBuilder().WithEndpoint(endpoint).WithConnectionTimeout(callTimeout).Build(ctx)
	require.NoError(n.t, err)
	n.images, err = remote.NewRemoteImageServiceBuilder().WithEndpoint(endpoint).WithConnectionTimeout(callTimeout).Build(ctx)
	require.NoError(n.t, err)
	n.client, err = containerd.New(containerdSocket, containerd.WithDefaultNamespace(criNamespace))
	require.NoError(n.t, err)
	n.awaitRuntime()
}

// awaitRuntime waits until the CRI plugin serves: containerd is ready before.
func (n *node) awaitRuntime() {
	n.t.Helper()
	require.NoError(n.t, poll(func() error {
		status, err := n.runtime.Status(n.t.Context(), false)
		if err != nil {
			return err
		}
		for _, c := range status.GetStatus().GetConditions() {
			if c.Type == runtimeapi.RuntimeReady && !c.Status {
				return fmt.Errorf("%s: %s", c.Reason, c.Message)
			}
		}
		return nil
	}))
}

// pull pulls the image of containers as the kubelet does for a pod of that handler.
func (n *node) pull(handler string) {
	n.t.Helper()
	spec := &runtimeapi.ImageSpec{Image: n.small, RuntimeHandler: handler}
	_, err := n.images.PullImage(n.t.Context(), spec, nil, &runtimeapi.PodSandboxConfig{})
	require.NoError(n.t, err)
}

// removeAllPods ends all pods.
func (n *node) removeAllPods() {
	n.t.Helper()
	pods, err := n.runtime.ListPodSandbox(background, nil)
	if err != nil {
		n.t.Error(err)
	}
	for _, p := range pods {
		if err := n.runtime.StopPodSandbox(background, p.Id); err != nil {
			n.t.Error(err)
		}
		if err := n.runtime.RemovePodSandbox(background, p.Id); err != nil {
			n.t.Error(err)
		}
	}
}

// removePods ends all pods, and the connections.
func (n *node) removePods() {
	n.t.Helper()
	n.removeAllPods()
	_, _, _ = n.runtime.Close(background), n.images.Close(background), n.client.Close()
}
