package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/pelletier/go-toml/v2"
	"github.com/urfave/cli/v3"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/internal/term"
)

func newConfig() *cli.Command {
	return &cli.Command{
		Name:  "config",
		Usage: "print the configuration in effect, as TOML",
		Description: "What it prints is a config file that has the same effect. The command opens nothing and changes nothing.\n\n" +
			exitCodes,
		Flags:    settingsFlags(),
		Commands: []*cli.Command{newConfigContainerd()},
		Action: func(_ context.Context, c *cli.Command) error {
			s, err := loadSettings(c)
			if err != nil {
				return err
			}
			return writeTOML(c.Root().Writer, s)
		},
	}
}

func newConfigContainerd() *cli.Command {
	return &cli.Command{
		Name:  "containerd",
		Usage: "print what containerd's configuration needs to use this daemon",
		Description: "Import the output from containerd's config.toml, or paste it there without its version line.\n\n" +
			"What this host is capable of is found by trying it, which needs root; nothing is left behind, and the root that the\n" +
			"configuration names need not exist yet. What is missing is said in a comment.\n\n" +
			exitCodes,
		Flags: []cli.Flag{
			&cli.IntFlag{
				Name:  "version",
				Usage: "the `VERSION` of containerd's config file: 2 (containerd 1.6 and later) or 3 (containerd 2)",
				Value: 3,
			},
		},
		Action: func(ctx context.Context, c *cli.Command) error {
			version := c.Int("version")
			if version != 2 && version != 3 {
				return fmt.Errorf("%w: --version %d is neither 2 nor 3", errUsage, version)
			}
			s, err := loadSettings(c)
			if err != nil {
				return err
			}
			return writeContainerd(ctx, c.Root().Writer, s, version)
		},
	}
}

// containerdConfig is the part of containerd's config file that concerns proxy plugins, which is the same in versions 2 and 3, and the
// order in which containerd asks differs.
type containerdConfig struct {
	Version      int                    `toml:"version"`
	ProxyPlugins map[string]proxyPlugin `toml:"proxy_plugins"`
	Plugins      map[string]differs     `toml:"plugins,omitempty"`
}

// proxyPlugin leaves out the platform: containerd takes the host's own, which is right for a daemon on the same host.
type proxyPlugin struct {
	Type         string            `toml:"type"`
	Address      string            `toml:"address"`
	Capabilities []string          `toml:"capabilities,omitempty"`
	Exports      map[string]string `toml:"exports,omitempty"`
}

type differs struct {
	Order []string `toml:"default"`
}

const (
	diffServicePlugin = "io.containerd.service.v1.diff-service"
	// walkingDiffer is containerd's own.
	walkingDiffer = "walking"
)

// differName returns what containerd calls the differ. A proxy plugin of any type has its name as its key, so it cannot be that of a
// snapshotter.
func differName(snapshotters map[string]lamina.SnapshotterConfig) string {
	name := lamina.DefaultName + "-diff"
	for {
		if _, taken := snapshotters[name]; !taken {
			return name
		}
		name += "-diff"
	}
}

const (
	// howToPull: where the transfer service is told of any snapshotter, it forgets its default one.
	howToPull = `
# "ctr images pull" and "ctr images import" of containerd 2 unpack for the snapshotters that their service is told of.
# To be among them, config.toml needs the following too. The first entry is what containerd does without any.
# The differ, which unpacks, has to be named for containerd 2.0 and 2.1: they take the first that is loaded, later ones prefer this.
#
# [[plugins."io.containerd.transfer.v1.local".unpack_config]]
#   platform = "linux"
#   snapshotter = "overlayfs"
#   differ = "walking"
`
	// howToUnpack: in the transfer service the limit is that of all snapshotters. CRI unpacks with one of its own.
	howToUnpack = `#
# Layers of an image are unpacked side by side where config.toml has
#
# [plugins."io.containerd.transfer.v1.local"]
#   max_concurrent_unpacks = 4
`
	howToUse = `# Import this file from containerd's config.toml (imports = ["/etc/containerd/lamina.toml"]),
# or paste it there without the version line.
`
	// howOldReads: containerd 1.6 decodes into a struct of type and address, and passes over what the struct lacks.
	howOldReads = `# containerd 1.6 reads type and address and passes over the other keys.
`
	// howOldDiffers: containerd 1.6 panics at a proxy plugin of a type that it does not know.
	howOldDiffers = `
# containerd 1.7 has a diff service that Lamina can serve: a commit of a container then costs what it changed. For 1.6 leave
# this out, which does not start with it. If config.toml names unpack_config, it needs differ = "walking" in each.
#
# [proxy_plugins.%[1]s]
#   type = "diff"
#   address = %[2]q
# [plugins."io.containerd.service.v1.diff-service"]
#   default = [%[1]q, "walking"]
`
	// howOldLacks: containerd 1.7 reads capabilities, but its mount code does not know the options uidmap= and gidmap=.
	howOldLacks = `# Capabilities are left out: for id maps and parallel unpacking containerd 2 is needed, and version 3 of this file.
`
)

func writeContainerd(ctx context.Context, w io.Writer, s settings, version int) error {
	config := containerdConfig{Version: version, ProxyPlugins: make(map[string]proxyPlugin)}
	var missing []string
	for _, name := range slices.Sorted(maps.Keys(s.Snapshotters)) {
		has, lacks := s.Capabilities(ctx, name)
		if version == 2 {
			has = nil
		}
		for _, err := range lacks {
			missing = append(missing, fmt.Sprintf("# %s has no %s\n", name, term.Line(fmt.Sprint(err))))
		}
		config.ProxyPlugins[name] = proxyPlugin{
			Type:         "snapshot",
			Address:      s.Address,
			Capabilities: has,
			Exports:      map[string]string{"root": s.ContentRoot(name)},
		}
	}
	if err := ctx.Err(); err != nil {
		return err // what was cut short is missing without cause
	}
	differ := differName(s.Snapshotters)
	if version >= 3 {
		config.ProxyPlugins[differ] = proxyPlugin{Type: "diff", Address: s.Address}
		config.Plugins = map[string]differs{diffServicePlugin: {Order: []string{differ, walkingDiffer}}}
	}
	head := howToUse
	if version == 2 {
		head += howOldReads + howOldLacks
	} else {
		head += strings.Join(missing, "")
	}
	if _, err := io.WriteString(w, head); err != nil {
		return err
	}
	if err := writeTOML(w, config); err != nil {
		return err
	}
	if version == 2 {
		_, err := fmt.Fprintf(w, howOldDiffers, differ, s.Address)
		return err
	}
	return writeUnpackConfig(w, config)
}

// writeUnpackConfig prints what containerd's transfer service needs, as a comment: unpack_config is a list, of which
// containerd would take the last that it reads and drop the others.
func writeUnpackConfig(w io.Writer, config containerdConfig) error {
	var b strings.Builder
	b.WriteString(howToPull)
	sideBySide := false
	for _, name := range slices.Sorted(maps.Keys(config.ProxyPlugins)) {
		if config.ProxyPlugins[name].Type != "snapshot" {
			continue
		}
		sideBySide = sideBySide || slices.Contains(config.ProxyPlugins[name].Capabilities, snapshots.RebaseCap)
		fmt.Fprintf(&b, "# [[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n#   platform = \"linux\"\n#   snapshotter = %q\n#   differ = %q\n", name, walkingDiffer)
	}
	if sideBySide {
		b.WriteString(howToUnpack)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func writeTOML(w io.Writer, v any) error {
	enc := toml.NewEncoder(w)
	enc.SetIndentTables(true)
	return enc.Encode(v)
}
