package lamina

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// tPlugins starts the registered plugins as containerd does, without those that disabled names, and returns them by URI.
func tPlugins(t *testing.T, root string, config *PluginConfig, disabled string) map[string]*plugin.Plugin {
	t.Helper()
	set := plugin.NewPluginSet()
	byURI := make(map[string]*plugin.Plugin)
	metadata := &plugin.Registration{
		Type: plugins.MetadataPlugin, ID: "bolt", InitFn: func(*plugin.InitContext) (any, error) { return noContent{}, nil },
	}
	graph := registry.Graph(func(r *plugin.Registration) bool { return r.URI() == disabled })
	for _, r := range append([]plugin.Registration{*metadata}, graph...) {
		ic := plugin.NewContext(t.Context(), set, map[string]string{plugins.PropertyRootDir: filepath.Join(root, r.URI())})
		ic.Config = r.Config
		if r.Config != nil && config != nil {
			ic.Config = config
		}
		p := r.Init(ic)
		if err := set.Add(p); err != nil {
			t.Fatal(err)
		}
		byURI[r.URI()] = p
		if h, ok := mustInstance(p).(*Host); ok {
			t.Cleanup(func() { _ = h.Close() })
		}
	}
	return byURI
}

// noContent is a containerd's metadata whose content store nobody calls.
type noContent struct{}

func (noContent) ContentStore() content.Store { return nil }

func mustInstance(p *plugin.Plugin) any {
	instance, _ := p.Instance()
	return instance
}

const (
	hostURI        = "io.containerd.internal.v1.lamina"
	snapshotterURI = "io.containerd.snapshotter.v1.lamina"
	differURI      = "io.containerd.differ.v1.lamina"
)

func TestPlugins(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	p := tPlugins(t, root, nil, "")
	sn, err := p[snapshotterURI].Instance()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sn.(snapshots.Snapshotter).Prepare(t.Context(), "key", ""); err != nil {
		t.Error(err)
	}
	meta := p[snapshotterURI].Meta
	if len(meta.Platforms) != 1 || meta.Exports[plugins.SnapshotterRootDir] != filepath.Join(root, hostURI, "union") {
		t.Errorf("meta is %+v", meta)
	}
	c := DefaultConfig()
	c.Root = filepath.Join(root, hostURI)
	if has, missing := c.Capabilities(t.Context(), DefaultName); !slices.Equal(meta.Capabilities, has) {
		t.Errorf("capabilities are %q, of %q without %v", meta.Capabilities, has, missing)
	}
	// containerd's diff service takes what does both, and goes on to the next in its order.
	d, err := p[differURI].Instance()
	if err != nil {
		t.Fatal(err)
	}
	both := d.(interface {
		diff.Comparer
		diff.Applier
	})
	theirs := []mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=/a:/b"}}}
	if _, err := both.Compare(t.Context(), theirs, theirs); !errdefs.IsNotImplemented(err) {
		t.Errorf("compare mounts of others: %v", err)
	}
	if _, err := both.Apply(t.Context(), ocispec.Descriptor{}, theirs); !errdefs.IsNotImplemented(err) {
		t.Errorf("apply: %v", err)
	}
	if got := p[differURI].Meta.Platforms; len(got) != 1 {
		t.Errorf("the differ's platforms are %v", got)
	}
	// containerd's order.
	for _, uri := range []string{snapshotterURI, hostURI} {
		if err := mustInstance(p[uri]).(interface{ Close() error }).Close(); err != nil {
			t.Errorf("close %s: %v", uri, err)
		}
	}
}

func TestPluginRoot(t *testing.T) {
	needRoot(t)
	c := &PluginConfig{Root: filepath.Join(t.TempDir(), "elsewhere"), Union: DefaultConfig().Union}
	p := tPlugins(t, t.TempDir(), c, "")
	if err := p[snapshotterURI].Err(); err != nil {
		t.Fatal(err)
	}
	if got := p[snapshotterURI].Meta.Exports[plugins.SnapshotterRootDir]; got != filepath.Join(c.Root, "union") {
		t.Errorf("root is %s", got)
	}
}

// An error of the host is the snapshotter's too, and no reason to keep quiet.
func TestPluginFails(t *testing.T) {
	c := &PluginConfig{Root: "/proc/lamina"}
	p := tPlugins(t, t.TempDir(), c, "")
	for _, uri := range []string{hostURI, snapshotterURI, differURI} {
		if err := p[uri].Err(); err == nil || plugin.IsSkipPlugin(err) || !strings.Contains(err.Error(), "root: ") {
			t.Errorf("%s: %v", uri, err)
		}
	}
}

func TestPluginDisabled(t *testing.T) {
	p := tPlugins(t, t.TempDir(), nil, hostURI)
	for _, uri := range []string{snapshotterURI, differURI} {
		if err := p[uri].Err(); !plugin.IsSkipPlugin(err) {
			t.Errorf("%s without its host: %v", uri, err)
		}
	}
}
