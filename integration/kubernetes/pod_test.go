package kubernetes

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/stretchr/testify/require"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A pod is a sandbox with the network of the host.
type pod struct {
	*node
	id      string
	config  *runtimeapi.PodSandboxConfig
	handler string
	count   int // of containers that it has had
}

// runPod runs a sandbox. With ids its user namespace shows those from there on as 0 and up.
func (n *node) runPod(name, handler string, ids uint32) *pod {
	n.t.Helper()
	p := &pod{node: n, handler: handler}
	namespaces := &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE}
	if ids != 0 {
		maps := []*runtimeapi.IDMapping{{ContainerId: 0, HostId: ids, Length: 65536}}
		namespaces.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: maps, Gids: maps}
	}
	p.config = &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Uid: name, Namespace: "default"},
		LogDirectory: filepath.Join(n.dir, name),
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent:    n.cgroupParent,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: namespaces},
		},
	}
	var err error
	p.id, err = n.runtime.RunPodSandbox(n.t.Context(), p.config, handler)
	require.NoError(n.t, err)
	return p
}

func (p *pod) remove() {
	p.t.Helper()
	require.NoError(p.t, p.runtime.StopPodSandbox(p.t.Context(), p.id))
	require.NoError(p.t, p.runtime.RemovePodSandbox(p.t.Context(), p.id))
}

// A container is one of a pod.
type container struct {
	*pod
	id  string
	log string
}

// create creates a container that runs a script.
func (p *pod) create(script string) *container {
	p.t.Helper()
	c, err := p.tryCreate(script)
	require.NoError(p.t, err)
	return c
}

func (p *pod) tryCreate(script string) (*container, error) {
	p.count++
	name := fmt.Sprintf("container-%d", p.count)
	config := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: p.small, RuntimeHandler: p.handler},
		Command:  []string{"/bin/sh", "-c", script},
		LogPath:  name + ".log",
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			NamespaceOptions: p.config.Linux.SecurityContext.NamespaceOptions,
		}},
	}
	id, err := p.runtime.CreateContainer(p.t.Context(), p.id, config, p.config)
	return &container{pod: p, id: id, log: filepath.Join(p.config.LogDirectory, config.LogPath)}, err
}

// run creates and starts a container.
func (p *pod) run(script string) *container {
	p.t.Helper()
	c := p.create(script)
	require.NoError(p.t, p.runtime.StartContainer(p.t.Context(), c.id))
	return c
}

// idle runs a container that waits, to be looked into.
func (p *pod) idle() *container {
	p.t.Helper()
	return p.run("sleep 1000000")
}

// output waits for the end of a container and returns what it has printed.
func (c *container) output() string {
	c.t.Helper()
	require.NoError(c.t, poll(func() error {
		status, err := c.runtime.ContainerStatus(c.t.Context(), c.id, false)
		switch {
		case err != nil:
			return err
		case status.Status.State != runtimeapi.ContainerState_CONTAINER_EXITED:
			return fmt.Errorf("it is %s", status.Status.State)
		}
		return nil
	}))
	return c.printed()
}

// printed returns what the container has printed so far.
func (c *container) printed() string {
	c.t.Helper()
	content, err := os.ReadFile(c.log)
	require.NoError(c.t, err)
	var lines []string
	for line := range strings.Lines(string(content)) {
		// A time, the stream, and whether the line is whole stand before it.
		lines = append(lines, strings.SplitN(strings.TrimRight(line, "\n"), " ", 4)[3])
	}
	return strings.Join(lines, "\n")
}

// exec runs a script in a running container and returns what it prints.
func (c *container) exec(script string) string {
	c.t.Helper()
	stdout, stderr, err := c.runtime.ExecSync(c.t.Context(), c.id, []string{"/bin/sh", "-c", script}, 30*time.Second)
	require.NoError(c.t, err, "%s%s", stdout, stderr)
	return strings.TrimSpace(string(stdout))
}

func (c *container) remove() {
	c.t.Helper()
	require.NoError(c.t, c.runtime.RemoveContainer(c.t.Context(), c.id))
}

// rootMount returns the type of the file system that the container has its files on.
func (c *container) rootMount() (kind string) {
	c.t.Helper()
	for line := range strings.Lines(c.exec("cat /proc/self/mounts")) {
		if f := strings.Fields(line); f[1] == "/" {
			kind = f[2]
		}
	}
	return kind
}
