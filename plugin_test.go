package lamina

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
)

// tPlugins starts the registered plugins as containerd does, without those that disabled names, and returns them by URI.
func tPlugins(t *testing.T, root string, config *PluginConfig, disabled string) map[string]*plugin.Plugin {
	t.Helper()
	set := plugin.NewPluginSet()
	byURI := make(map[string]*plugin.Plugin)
	for _, r := range registry.Graph(func(r *plugin.Registration) bool { return r.URI() == disabled }) {
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

func mustInstance(p *plugin.Plugin) any {
	instance, _ := p.Instance()
	return instance
}

const (
	hostURI        = "io.containerd.internal.v1.lamina"
	snapshotterURI = "io.containerd.snapshotter.v1.lamina"
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
	for _, uri := range []string{hostURI, snapshotterURI} {
		if err := p[uri].Err(); err == nil || plugin.IsSkipPlugin(err) || !strings.Contains(err.Error(), "root: ") {
			t.Errorf("%s: %v", uri, err)
		}
	}
}

func TestPluginDisabled(t *testing.T) {
	p := tPlugins(t, t.TempDir(), nil, hostURI)
	if err := p[snapshotterURI].Err(); !plugin.IsSkipPlugin(err) {
		t.Errorf("without its host: %v", err)
	}
}
