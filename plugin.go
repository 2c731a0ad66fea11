package lamina

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lamina-snapshotter/lamina/differ"
	"github.com/lamina-snapshotter/lamina/dmthin"
	"github.com/lamina-snapshotter/lamina/overlayaufs"
)

// A PluginConfig is what stands under [plugins."io.containerd.internal.v1.lamina"] in the configuration of a containerd
// that links Lamina in. It has no address and no snapshotter names: containerd calls the one snapshotter, "lamina",
// directly.
type PluginConfig struct {
	// Root is empty for the directory that containerd gives the plugin, under its own root.
	Root string `toml:"root"`
	// Backend is "union", which "" is too, or "thin".
	Backend string `toml:"backend"`
	// Union holds the options of the union backend.
	Union overlayaufs.Config `toml:"union"`
	// Thin holds the options of the thin backend.
	Thin dmthin.Config `toml:"thin"`
}

// init registers three plugins, so that blank-importing this package is all it takes to link Lamina into a containerd.
// The internal one owns the root; the snapshotter is what containerd's clients name; the differ is asked if the configuration names it in
// the order of the diff service.
func init() {
	registry.Register(&plugin.Registration{
		Type:   plugins.InternalPlugin,
		ID:     DefaultName,
		Config: &PluginConfig{Backend: BackendUnion, Union: DefaultConfig().Union, Thin: DefaultConfig().Thin},
		InitFn: initHost,
	})
	registry.Register(&plugin.Registration{
		Type:     plugins.SnapshotPlugin,
		ID:       DefaultName,
		Requires: []plugin.Type{plugins.InternalPlugin},
		InitFn:   initSnapshotter,
	})
	registry.Register(&plugin.Registration{
		Type:     plugins.DiffPlugin,
		ID:       DefaultName,
		Requires: []plugin.Type{plugins.InternalPlugin, plugins.MetadataPlugin},
		InitFn:   initDiffer,
	})
}

// initHost opens the Host. At its stop containerd closes every plugin instance that has a Close, the last opened first:
// so the services end before the snapshotter, and the snapshotter before the Host.
//
// A root that cannot carry overlay is an error and no reason to skip: who links Lamina in wants it, containerd starts
// without a plugin that fails, and required_plugins is there for those who would rather have it not start.
func initHost(ic *plugin.InitContext) (any, error) {
	pc, ok := ic.Config.(*PluginConfig)
	if !ok {
		return nil, fmt.Errorf("the configuration is a %T", ic.Config)
	}
	c := DefaultConfig()
	c.Root = ic.Properties[plugins.PropertyRootDir]
	if pc.Root != "" {
		c.Root = pc.Root
	}
	c.Union, c.Thin = pc.Union, pc.Thin
	c.Snapshotters = map[string]SnapshotterConfig{DefaultName: {Backend: cmp.Or(pc.Backend, BackendUnion)}}
	h, err := Open(ic.Context, c)
	if err != nil {
		return nil, err // not h: a nil *Host in an any is not nil
	}
	return h, nil
}

// initSnapshotter hands out the snapshotter of the Host.
func initSnapshotter(ic *plugin.InitContext) (any, error) {
	h, err := hostOf(ic)
	if err != nil {
		return nil, err
	}
	ic.Meta.Platforms = append(ic.Meta.Platforms, platforms.DefaultSpec())
	ic.Meta.Exports[plugins.SnapshotterRootDir] = h.config.ContentRoot(DefaultName)
	has, missing := h.config.Capabilities(ic.Context, DefaultName)
	for _, err := range missing {
		log.G(ic.Context).WithError(err).Info("a capability is missing")
	}
	ic.Meta.Capabilities = has
	return h.Snapshotter(DefaultName)
}

// hostOf returns the Host. It is missing only where disabled_plugins names it, and then nobody wants the other plugins either.
func hostOf(ic *plugin.InitContext) (*Host, error) {
	instance, err := ic.GetByID(plugins.InternalPlugin, DefaultName)
	if errors.Is(err, plugin.ErrPluginNotFound) {
		return nil, fmt.Errorf("%s.%s is disabled: %w", plugins.InternalPlugin, DefaultName, plugin.ErrSkipPlugin)
	}
	if err != nil {
		return nil, err
	}
	h, ok := instance.(*Host)
	if !ok {
		return nil, fmt.Errorf("%s.%s is a %T", plugins.InternalPlugin, DefaultName, instance)
	}
	return h, nil
}

// initDiffer hands out a differ that writes to containerd's content store. The lease of the caller arrives, as in all of containerd's own
// plugins.
func initDiffer(ic *plugin.InitContext) (any, error) {
	h, err := hostOf(ic)
	if err != nil {
		return nil, err
	}
	instance, err := ic.GetSingle(plugins.MetadataPlugin)
	if err != nil {
		return nil, err
	}
	db, ok := instance.(interface{ ContentStore() content.Store })
	if !ok {
		return nil, fmt.Errorf("%s is a %T, without a content store", plugins.MetadataPlugin, instance)
	}
	ic.Meta.Platforms = append(ic.Meta.Platforms, platforms.DefaultSpec())
	return pluginDiffer{differ.New(h, db.ContentStore(), nil)}, nil
}

// A pluginDiffer is what containerd's diff service takes: it unpacks too, or says that it does not.
type pluginDiffer struct{ diff.Comparer }

func (pluginDiffer) Apply(context.Context, ocispec.Descriptor, []mount.Mount, ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	return ocispec.Descriptor{}, fmt.Errorf("layers are not unpacked here: %w", errdefs.ErrNotImplemented)
}
