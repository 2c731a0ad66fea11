package kubernetes

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A rollout is what an operator applies: an overlay of his own upon one of deploy/kubernetes, as docs/kubernetes.md says.
type rollout struct {
	overlay string
	tag     string            // of the image
	changed map[string]string // files of the configuration
}

// render returns the pod of the DaemonSet, and its configuration.
func (n *node) render(r rollout) (corev1.PodSpec, *corev1.ConfigMap) {
	n.t.Helper()
	dir := n.t.TempDir()
	base, err := filepath.Abs(repository("deploy", "kubernetes", r.overlay))
	require.NoError(n.t, err)
	base, err = filepath.Rel(dir, base) // kustomize takes no other
	require.NoError(n.t, err)
	var text strings.Builder
	fmt.Fprintf(&text, "resources: [%s]\nimages:\n- {name: ghcr.io/lamina-snapshotter/lamina, newName: %s/lamina/node, newTag: %s}\n",
		base, n.registry.address, r.tag)
	if len(r.changed) > 0 {
		text.WriteString("configMapGenerator:\n- name: lamina-config\n  namespace: lamina-system\n  behavior: merge\n  files:\n")
	}
	for name, content := range r.changed {
		n.install(filepath.Join(dir, name), []byte(content))
		text.WriteString("  - " + name + "\n")
	}
	n.install(filepath.Join(dir, "kustomization.yaml"), []byte(text.String()))
	objects := manifestsIn(n.t, dir)
	return mustFind[*appsv1.DaemonSet](n.t, objects)[0].Spec.Template.Spec, mustFind[*corev1.ConfigMap](n.t, objects)[0]
}

// A daemonPod is the pod of the DaemonSet. What it gets over the CRI API is made of the manifest as the kubelet makes it, but for the
// network, which is the host's: the node has no CNI.
type daemonPod struct {
	*pod
	spec      corev1.PodSpec
	volumes   map[string]string // where they are on the node
	container *container
	attempt   uint32
}

// rollOut runs the pod, in place of the one before.
func (n *node) rollOut(r rollout) *daemonPod {
	n.t.Helper()
	if n.daemonPod != nil {
		n.daemonPod.delete()
	}
	spec, config := n.render(r)
	_, err := n.images.PullImage(n.t.Context(), &runtimeapi.ImageSpec{Image: spec.Containers[0].Image}, nil, &runtimeapi.PodSandboxConfig{})
	require.NoError(n.t, err)
	n.rollouts++
	uid := fmt.Sprintf("lamina-%d", n.rollouts)
	d := &daemonPod{spec: spec, volumes: n.volumes(uid, spec, config), pod: &pod{node: n, config: &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: uid, Uid: uid, Namespace: config.Namespace},
		LogDirectory: filepath.Join(n.dir, uid),
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: n.cgroupParent,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_CONTAINER},
			},
		},
	}}}
	d.id, err = n.runtime.RunPodSandbox(n.t.Context(), d.config, "")
	require.NoError(n.t, err)
	d.restart()
	n.daemonPod = d
	return d
}

// volumes makes those of a pod.
func (n *node) volumes(uid string, spec corev1.PodSpec, config *corev1.ConfigMap) map[string]string {
	n.t.Helper()
	dirs := map[string]string{}
	for _, v := range spec.Volumes {
		switch {
		case v.HostPath != nil && *v.HostPath.Type == corev1.HostPathDirectoryOrCreate:
			require.NoError(n.t, os.MkdirAll(v.HostPath.Path, 0o755))
			fallthrough
		case v.HostPath != nil && *v.HostPath.Type == corev1.HostPathDirectory:
			require.DirExists(n.t, v.HostPath.Path)
			dirs[v.Name] = v.HostPath.Path
		case v.ConfigMap != nil:
			require.Equal(n.t, config.Name, v.ConfigMap.Name)
			dirs[v.Name] = filepath.Join(n.dir, uid, v.Name)
			n.writeConfigMap(dirs[v.Name], config.Data)
		default:
			n.t.Fatalf("the volume %s is of a kind that these tests know nothing of", v.Name)
		}
	}
	return dirs
}

// writeConfigMap makes a volume of one, whose files lie behind two links.
func (n *node) writeConfigMap(dir string, data map[string]string) {
	n.t.Helper()
	require.NoError(n.t, os.MkdirAll(filepath.Join(dir, "..1"), 0o755))
	require.NoError(n.t, os.Symlink("..1", filepath.Join(dir, "..data")))
	for name, content := range data {
		n.install(filepath.Join(dir, "..1", name), []byte(content))
		require.NoError(n.t, os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)))
	}
}

// restart starts the container, as after an end of it. The kubelet comes again for one that cannot be made, as while Lamina starts.
func (d *daemonPod) restart() {
	d.t.Helper()
	config := d.containerConfig(d.spec.Containers[0])
	var id string
	require.NoError(d.t, poll(func() (err error) {
		id, err = d.runtime.CreateContainer(d.t.Context(), d.id, config, d.config)
		return err
	}))
	d.container = &container{pod: d.pod, id: id, log: filepath.Join(d.config.LogDirectory, config.LogPath)}
	require.NoError(d.t, d.runtime.StartContainer(d.t.Context(), id))
}

func (d *daemonPod) containerConfig(c corev1.Container) *runtimeapi.ContainerConfig {
	d.t.Helper()
	d.attempt++
	config := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: c.Name, Attempt: d.attempt},
		Image:    &runtimeapi.ImageSpec{Image: c.Image, UserSpecifiedImage: c.Image},
		Command:  c.Command,
		Args:     c.Args,
		LogPath:  fmt.Sprintf("%s-%d.log", c.Name, d.attempt),
		Linux:    &runtimeapi.LinuxContainerConfig{Resources: resourcesOf(c.Resources), SecurityContext: d.securityContext(c.SecurityContext)},
	}
	for _, m := range c.VolumeMounts {
		mount := &runtimeapi.Mount{ContainerPath: m.MountPath, HostPath: d.volumes[m.Name], Readonly: m.ReadOnly}
		if m.MountPropagation != nil {
			require.Equal(d.t, corev1.MountPropagationHostToContainer, *m.MountPropagation)
			mount.Propagation = runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
		}
		config.Mounts = append(config.Mounts, mount)
	}
	return config
}

func resourcesOf(r corev1.ResourceRequirements) *runtimeapi.LinuxContainerResources {
	return &runtimeapi.LinuxContainerResources{
		CpuShares:          r.Requests.Cpu().MilliValue() * 1024 / 1000,
		MemoryLimitInBytes: r.Limits.Memory().Value(),
		OomScoreAdj:        -997, // of system-node-critical
	}
}

func (d *daemonPod) securityContext(s *corev1.SecurityContext) *runtimeapi.LinuxContainerSecurityContext {
	d.t.Helper()
	require.Equal(d.t, corev1.SeccompProfileTypeRuntimeDefault, s.SeccompProfile.Type)
	var dropped []string
	for _, c := range s.Capabilities.Drop {
		dropped = append(dropped, string(c))
	}
	return &runtimeapi.LinuxContainerSecurityContext{
		Capabilities:     &runtimeapi.Capability{DropCapabilities: dropped},
		Privileged:       *s.Privileged,
		NamespaceOptions: d.config.Linux.SecurityContext.NamespaceOptions,
		RunAsUser:        &runtimeapi.Int64Value{Value: *s.RunAsUser},
		RunAsGroup:       &runtimeapi.Int64Value{Value: *s.RunAsGroup},
		ReadonlyRootfs:   *s.ReadOnlyRootFilesystem,
		NoNewPrivs:       !*s.AllowPrivilegeEscalation,
		Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
		SelinuxOptions:   &runtimeapi.SELinuxOption{Type: s.SELinuxOptions.Type},
	}
}

// done waits until the pod has done its work, which is then ready, and returns what it has printed.
func (d *daemonPod) done() string {
	d.t.Helper()
	start := time.Now()
	d.awaitLine("done")
	if probe := d.spec.Containers[0].ReadinessProbe; probe != nil {
		require.NoError(d.t, poll(func() error {
			stdout, stderr, err := d.runtime.ExecSync(d.t.Context(), d.container.id, probe.Exec.Command, time.Duration(probe.TimeoutSeconds)*time.Second)
			if err != nil {
				err = fmt.Errorf("%w: %s%s", err, stdout, stderr)
			}
			return err
		}))
	}
	d.t.Logf("%s took %.1f s", d.config.Metadata.Name, time.Since(start).Seconds())
	return d.container.printed()
}

// awaitLine waits until the container has printed a line.
func (d *daemonPod) awaitLine(line string) {
	d.t.Helper()
	require.NoError(d.t, poll(func() error {
		if printed := d.container.printed(); !slices.Contains(strings.Split(printed, "\n"), line) {
			return errors.New("it has printed:\n" + printed)
		}
		return nil
	}))
}

// failed waits for the end of a container that does not get its work done, and returns what it has printed.
func (d *daemonPod) failed() string {
	d.t.Helper()
	printed := d.container.output()
	require.Equal(d.t, int32(1), d.exitCode(), printed)
	return printed
}

func (d *daemonPod) exitCode() int32 {
	d.t.Helper()
	status, err := d.runtime.ContainerStatus(d.t.Context(), d.container.id, false)
	require.NoError(d.t, err)
	require.Equal(d.t, runtimeapi.ContainerState_CONTAINER_EXITED, status.Status.State)
	return status.Status.ExitCode
}

// unknownExitCode is that of a container which ended while containerd was away.
const unknownExitCode = 255

// killAt kills the container when it has printed a line, and starts it again.
func (d *daemonPod) killAt(line string) {
	d.t.Helper()
	d.awaitLine(line)
	d.inSystemd("kill", "-KILL", d.pid())
	d.awaitRuntime()
	d.container.output()
	require.Contains(d.t, []int32{128 + int32(syscall.SIGKILL), unknownExitCode}, d.exitCode())
	d.restart()
}

// pid waits for the process of the container to run its program: StartContainer returns when runc's is about to.
func (d *daemonPod) pid() (pid string) {
	d.t.Helper()
	require.NoError(d.t, poll(func() (err error) {
		pid, err = d.tryInSystemd("pgrep", "-x", "lamina-node")
		return err
	}))
	return pid
}

// stop ends the container as the kubelet does, which it obeys, and returns its exit code.
func (d *daemonPod) stop() int32 {
	d.t.Helper()
	require.NoError(d.t, d.runtime.StopContainer(d.t.Context(), d.container.id, *d.spec.TerminationGracePeriodSeconds))
	return d.exitCode()
}

// delete takes the pod away.
func (d *daemonPod) delete() {
	d.t.Helper()
	require.Less(d.t, d.stop(), int32(128), "it ends before it is killed")
	d.remove()
	d.daemonPod = nil
}

// requireConfined asks the kernel and systemd what the container has, and not what it was to have.
func (d *daemonPod) requireConfined() {
	d.t.Helper()
	pid := d.pid()
	status := d.inSystemd("cat", "/proc/"+pid+"/status", "/proc/"+pid+"/mounts")
	for _, want := range []string{"CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2", "Uid:\t0\t"} {
		require.Contains(d.t, status, want)
	}
	require.Regexp(d.t, `(?m)^\S+ / \S+ ro,`, status)
	limit := d.spec.Containers[0].Resources.Limits.Memory().Value()
	require.Equal(d.t, fmt.Sprint("MemoryMax=", limit), d.systemctl("show", "--property=MemoryMax", "cri-containerd-"+d.container.id+".scope"))
}
