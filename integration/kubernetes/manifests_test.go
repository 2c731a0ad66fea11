package kubernetes

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"github.com/pelletier/go-toml/v2"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/yaml"
	kubeletv1beta1 "k8s.io/kubelet/config/v1beta1"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// manifests are those of an overlay, as kubectl apply -k sends them.
func manifests(t *testing.T, overlay string) (objects []runtime.Object) {
	t.Helper()
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), repository("deploy", "kubernetes", overlay))
	require.NoError(t, err)
	text, err := built.AsYaml()
	require.NoError(t, err)
	scheme := runtime.NewScheme()
	require.NoError(t, errors.Join(appsv1.AddToScheme(scheme), corev1.AddToScheme(scheme), nodev1.AddToScheme(scheme)))
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	documents := yaml.NewDocumentDecoder(io.NopCloser(bytes.NewReader(text)))
	buf := make([]byte, len(text)+1)
	for {
		n, err := documents.Read(buf)
		if errors.Is(err, io.EOF) {
			return objects
		}
		require.NoError(t, err)
		object, _, err := decoder.Decode(buf[:n], nil, nil)
		require.NoError(t, err, "%s", buf[:n])
		objects = append(objects, object)
	}
}

// mustFind returns the objects of a kind.
func mustFind[T runtime.Object](t *testing.T, objects []runtime.Object) (found []T) {
	t.Helper()
	for _, o := range objects {
		if object, ok := o.(T); ok {
			found = append(found, object)
		}
	}
	require.NotEmpty(t, found)
	return found
}

var overlays = []string{"union", "thin", "mixed"}

// TestManifests holds the manifests to the types of the Kubernetes API, and to what else has to fit.
func TestManifests(t *testing.T) {
	for _, overlay := range overlays {
		t.Run(overlay, func(t *testing.T) {
			objects := manifests(t, overlay)
			pod := mustFind[*appsv1.DaemonSet](t, objects)[0].Spec.Template
			config := mustFind[*corev1.ConfigMap](t, objects)[0]
			require.Equal(t, config.Name, pod.Spec.Volumes[0].ConfigMap.Name, "with the hash by which a change of it is rolled out")
			require.Equal(t, "system-node-critical", pod.Spec.PriorityClassName)
			requireUnprivileged(t, pod.Spec)
			for _, class := range mustFind[*nodev1.RuntimeClass](t, objects) {
				require.Contains(t, handlersIn(t, config.Data["cri.toml"]), class.Handler)
				require.Contains(t, handlersIn(t, config.Data["systemd.toml"]), class.Handler)
				for key, value := range class.Scheduling.NodeSelector {
					require.Equal(t, value, pod.Spec.NodeSelector[key], "a node with the class is one that Lamina is installed on")
				}
			}
		})
	}
	removing := mustFind[*appsv1.DaemonSet](t, manifests(t, "remove"))[0].Spec.Template.Spec
	require.Equal(t, []string{"remove"}, removing.Containers[0].Args)
	require.Nil(t, removing.Containers[0].ReadinessProbe)
}

// requireUnprivileged checks that the pod has nothing but root's name, and only the paths of the host that it writes to.
func requireUnprivileged(t *testing.T, pod corev1.PodSpec) {
	t.Helper()
	require.False(t, pod.HostPID || pod.HostNetwork || pod.HostIPC)
	context := pod.Containers[0].SecurityContext
	require.False(t, *context.Privileged || *context.AllowPrivilegeEscalation)
	require.True(t, *context.ReadOnlyRootFilesystem)
	require.Equal(t, []corev1.Capability{"ALL"}, context.Capabilities.Drop)
	require.Empty(t, context.Capabilities.Add)
	mounted := map[string]string{}
	for _, m := range pod.Containers[0].VolumeMounts {
		if m.Name == "sockets" { // the host unmounts containers there
			require.Equal(t, corev1.MountPropagationHostToContainer, *m.MountPropagation)
		} else {
			require.Nil(t, m.MountPropagation, m.Name)
		}
		mounted[m.Name] = m.MountPath
	}
	for _, v := range pod.Volumes[1:] {
		require.Equal(t, v.HostPath.Path, mounted[v.Name], "it writes paths as the host has them")
	}
}

// A criConfig is the part of containerd's configuration that the files set.
type criConfig struct {
	Imports []string
	Plugins struct {
		Images struct {
			Snapshotter                string
			DiscardUnpackedLayers      bool                         `toml:"discard_unpacked_layers"`
			DisableSnapshotAnnotations bool                         `toml:"disable_snapshot_annotations"`
			StatsCollectPeriod         int                          `toml:"stats_collect_period"`
			UseLocalImagePull          bool                         `toml:"use_local_image_pull"`
			RuntimePlatforms           map[string]map[string]string `toml:"runtime_platforms"`
		} `toml:"io.containerd.cri.v1.images"`
		Runtime struct {
			Containerd struct {
				Runtimes map[string]struct {
					Type        string `toml:"runtime_type"`
					Snapshotter string
					Options     map[string]any
				}
			}
		} `toml:"io.containerd.cri.v1.runtime"`
		Transfer struct {
			MaxConcurrentUnpacks int                            `toml:"max_concurrent_unpacks"`
			UnpackConfig         []struct{ Snapshotter string } `toml:"unpack_config"`
		} `toml:"io.containerd.transfer.v1.local"`
	}
}

func handlersIn(t *testing.T, text string) (names []string) {
	t.Helper()
	var c criConfig
	require.NoError(t, toml.Unmarshal([]byte(text), &c))
	for name := range c.Plugins.Runtime.Containerd.Runtimes {
		names = append(names, name)
	}
	return names
}

// TestContainerdConfig has containerd say what it makes of a node's own file and of those that are installed beside it.
func TestContainerdConfig(t *testing.T) {
	containerd, err := filepath.Abs(repository("bin", "tools", "containerd"))
	require.NoError(t, err)
	for _, overlay := range overlays {
		t.Run(overlay, func(t *testing.T) {
			n := &node{t: t, dir: t.TempDir(), registry: registry{address: "registry"}}
			deployed := repository("deploy", "kubernetes", overlay)
			for _, name := range []string{"cri.toml", "systemd.toml"} {
				n.install(filepath.Join(n.dir, "conf.d", name), mustRead(t, filepath.Join(deployed, name)))
			}
			main := filepath.Join(n.dir, "config.toml")
			n.install(main, bytes.ReplaceAll([]byte(n.containerdConfig()), []byte("/etc/containerd/conf.d"), []byte(n.dir+"/conf.d")))
			out, err := exec.Command(containerd, "--config", main, "config", "dump").Output()
			require.NoError(t, err)
			var c criConfig
			require.NoError(t, toml.Unmarshal(out, &c))

			var lamina struct{ Snapshotters map[string]any }
			require.NoError(t, toml.Unmarshal(mustRead(t, filepath.Join(deployed, "config.toml")), &lamina))
			images := c.Plugins.Images
			require.Equal(t, 1, images.StatsCollectPeriod, "of the node's own file")
			require.Contains(t, lamina.Snapshotters, images.Snapshotter)
			require.True(t, images.DisableSnapshotAnnotations && !images.DiscardUnpackedLayers && !images.UseLocalImagePull)
			for name, r := range c.Plugins.Runtime.Containerd.Runtimes {
				if name == "runc" {
					continue
				}
				require.Contains(t, lamina.Snapshotters, r.Snapshotter)
				require.Equal(t, r.Snapshotter, images.RuntimePlatforms[name]["snapshotter"])
				require.Equal(t, true, r.Options["SystemdCgroup"])
			}
			require.Len(t, c.Plugins.Runtime.Containerd.Runtimes, 1+len(lamina.Snapshotters), "those and containerd's own")
			for name := range lamina.Snapshotters {
				require.True(t, slices.ContainsFunc(c.Plugins.Transfer.UnpackConfig, func(u struct{ Snapshotter string }) bool { return u.Snapshotter == name }))
			}
			require.Equal(t, 4, c.Plugins.Transfer.MaxConcurrentUnpacks)
		})
	}
}

// TestExamples holds the examples to the same types, and all YAML and TOML of the page to the files here.
func TestExamples(t *testing.T) {
	scheme := runtime.NewScheme()
	require.NoError(t, errors.Join(corev1.AddToScheme(scheme), kubeletv1beta1.AddToScheme(scheme)))
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	examples, err := filepath.Glob(repository("deploy", "kubernetes", "examples", "*.yaml"))
	require.NoError(t, err)
	require.NotEmpty(t, examples)
	for _, name := range examples {
		_, _, err := decoder.Decode(mustRead(t, name), nil, nil)
		require.NoError(t, err, name)
	}
	page := mustRead(t, repository("docs", "kubernetes.md"))
	var files [][]byte
	for _, pattern := range []string{"*/*.yaml", "*/*.toml"} {
		names, err := filepath.Glob(repository("deploy", "kubernetes", pattern))
		require.NoError(t, err)
		for _, name := range names {
			files = append(files, mustRead(t, name))
		}
	}
	blocks := regexp.MustCompile("(?s)```(?:yaml|toml)\n(.*?)```").FindAllSubmatch(page, -1)
	require.NotEmpty(t, blocks)
	for _, b := range blocks {
		in := func(file []byte) bool { return bytes.Contains(file, b[1]) }
		require.True(t, slices.ContainsFunc(files, in), "no file in deploy/kubernetes has:\n%s", b[1])
	}
}

// TestCommands looks for what the commands of the page name: overlays, files, labels, and the DaemonSet.
func TestCommands(t *testing.T) {
	var applied []runtime.Object
	commands := bytes.Join(regexp.MustCompile("(?s)```sh\n.*?```").FindAll(mustRead(t, repository("docs", "kubernetes.md")), -1), nil)
	for _, found := range regexp.MustCompile(`-k deploy/kubernetes/(\S+)`).FindAllSubmatch(commands, -1) {
		applied = append(applied, manifests(t, string(found[1]))...)
	}
	for _, found := range regexp.MustCompile(`-f (\S+)`).FindAllSubmatch(commands, -1) {
		require.FileExists(t, repository(string(found[1])))
	}
	var labels []string
	for _, set := range mustFind[*appsv1.DaemonSet](t, applied) {
		require.Contains(t, string(commands), "-n "+set.Namespace+" ")
		labels = slices.AppendSeq(labels, maps.Keys(set.Spec.Template.Spec.NodeSelector))
	}
	named := regexp.MustCompile(`lamina-snapshotter\.github\.io/\w+`).FindAllString(string(commands), -1)
	require.Len(t, named, 4)
	for _, label := range named {
		require.Contains(t, labels, label)
	}
	require.Contains(t, string(commands), "daemonset/"+mustFind[*appsv1.DaemonSet](t, applied)[0].Name)
}
