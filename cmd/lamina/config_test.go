package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"github.com/lamina-snapshotter/lamina"
)

// What "lamina config" prints is a config file with the same effect.
func TestConfigRoundTrip(t *testing.T) {
	for _, text := range []string{
		"",
		"root = \"/r\"\naddress = \"/a b/\\\"c\\\".sock\"\n[log]\nlevel = \"trace\"\nformat = \"json\"\n" +
			"[snapshotters.\"a.b\"]\n[snapshotters.c]\nbackend = \"union\"\n[union]\nsync = \"off\"",
	} {
		path := tFile(t, text)
		want, err := readSettings(path, true)
		if err != nil {
			t.Fatal(err)
		}
		want.Admin.Address = want.adminAddress()
		code, stdout, stderr := tRun(t, "config", "--config", path)
		if code != exitOK {
			t.Fatal(stderr)
		}
		got, err := readSettings(tFile(t, stdout), true)
		if err != nil {
			t.Fatalf("%v in:\n%s", err, stdout)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	}
}

func TestConfigContainerd(t *testing.T) {
	const head = `# Import this file from containerd's config.toml (imports = ["/etc/containerd/lamina.toml"]),
# or paste it there without the version line.
`
	const plugin = `
[proxy_plugins]
  [proxy_plugins.lamina]
    type = 'snapshot'
    address = '/run/lamina/lamina.sock'
`
	root := filepath.Join(t.TempDir(), "lamina")
	exports := fmt.Sprintf(`
    [proxy_plugins.lamina.exports]
      root = '%s/union'
`, root)
	const diffPlugin = `
  [proxy_plugins.lamina-diff]
    type = 'diff'
    address = '/run/lamina/lamina.sock'

[plugins]
  [plugins.'io.containerd.service.v1.diff-service']
    default = ['lamina-diff', 'walking']
`
	const oldDiff = `
# containerd 1.7 has a diff service that Lamina can serve: a commit of a container then costs what it changed. For 1.6 leave
# this out, which does not start with it. If config.toml names unpack_config, it needs differ = "walking" in each.
#
# [proxy_plugins.lamina-diff]
#   type = "diff"
#   address = "/run/lamina/lamina.sock"
# [plugins."io.containerd.service.v1.diff-service"]
#   default = ["lamina-diff", "walking"]
`
	const pull = `
# "ctr images pull" and "ctr images import" of containerd 2 unpack for the snapshotters that their service is told of.
# To be among them, config.toml needs the following too. The first entry is what containerd does without any.
# The differ, which unpacks, has to be named for containerd 2.0 and 2.1: they take the first that is loaded, later ones prefer this.
#
# [[plugins."io.containerd.transfer.v1.local".unpack_config]]
#   platform = "linux"
#   snapshotter = "overlayfs"
#   differ = "walking"
# [[plugins."io.containerd.transfer.v1.local".unpack_config]]
#   platform = "linux"
#   snapshotter = "lamina"
#   differ = "walking"
#
# Layers of an image are unpacked side by side where config.toml has
#
# [plugins."io.containerd.transfer.v1.local"]
#   max_concurrent_unpacks = 4
`
	const old = "# containerd 1.6 reads type and address and passes over the other keys.\n" +
		"# Capabilities are left out: for id maps and parallel unpacking containerd 2 is needed, and version 3 of this file.\n"
	capabilities := "    capabilities = ['remap-ids', 'only-remap-ids', 'rebase']\n"
	c := lamina.DefaultConfig()
	c.Root = root
	if _, missing := c.Capabilities(t.Context(), lamina.DefaultName); len(missing) > 0 {
		t.Logf("this host has no %v", missing)
		capabilities = "    capabilities = ['only-remap-ids', 'rebase']\n"
	}
	for version, want := range map[string]string{
		"2": head + old + "version = 2\n" + plugin + exports + oldDiff,
		"3": head + "version = 3\n" + plugin + capabilities + exports + diffPlugin + pull,
	} {
		code, stdout, stderr := tRun(t, "config", "containerd", "--config", tFile(t, ""), "--root", root, "--version", version)
		if got := withoutMissing(stdout); code != exitOK || got != want {
			t.Errorf("version %s: exit code %d, %s\n%s\nwant:\n%s", version, code, stderr, got, want)
		}
	}
}

// withoutMissing takes away the comments that say what this host cannot do.
func withoutMissing(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "# lamina has no ") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// What has not been tried to its end is no answer.
func TestConfigContainerdCutShort(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out strings.Builder
	if err := writeContainerd(ctx, &out, defaultSettings(), 3); !errors.Is(err, context.Canceled) || out.Len() > 0 {
		t.Errorf("%v, after\n%s", err, &out)
	}
}

// What is missing is said in one line, which containerd passes over.
func TestConfigContainerdMissing(t *testing.T) {
	code, stdout, stderr := tRun(t, "config", "containerd", "--config", tFile(t, "root = \"/proc/lamina\""))
	if code != exitOK {
		t.Fatal(stderr)
	}
	var got theirConfig
	if err := toml.Unmarshal([]byte(stdout), &got); err != nil {
		t.Fatalf("%v in:\n%s", err, stdout)
	}
	if p := got.ProxyPlugins["lamina"]; !slices.Equal(p.Capabilities, []string{"only-remap-ids", "rebase"}) {
		t.Errorf("/proc: %+v", p)
	}
	if !strings.Contains(stdout, "\n# lamina has no remap-ids: union root /proc/lamina/union: ") {
		t.Errorf("it does not say what is missing:\n%s", stdout)
	}
}

// theirConfig has the keys of containerd's own Config that matter here (cmd/containerd/server/config, 2.4).
type theirConfig struct {
	Version      int      `toml:"version"`
	Imports      []string `toml:"imports"`
	ProxyPlugins map[string]struct {
		Type         string            `toml:"type"`
		Address      string            `toml:"address"`
		Platform     string            `toml:"platform"`
		Exports      map[string]string `toml:"exports"`
		Capabilities []string          `toml:"capabilities"`
	} `toml:"proxy_plugins"`
	Plugins map[string]map[string]any `toml:"plugins"`
}

func TestConfigContainerdReadBack(t *testing.T) {
	path := tFile(t, "root = \"/srv/lamina\"\naddress = \"/run/l/\\\"x\\\".sock\"\n[snapshotters.\"a.b\"]\n[snapshotters.lamina-diff]")
	code, stdout, stderr := tRun(t, "config", "containerd", "--config", path)
	if code != exitOK {
		t.Fatal(stderr)
	}
	var got theirConfig
	if err := toml.NewDecoder(bytes.NewReader([]byte(stdout))).DisallowUnknownFields().Decode(&got); err != nil {
		t.Fatalf("%v in:\n%s", err, stdout)
	}
	if got.Version != 3 || len(got.ProxyPlugins) != 3 {
		t.Fatalf("got %+v", got)
	}
	// No key can be that of two plugins, of whatever type.
	order := got.Plugins["io.containerd.service.v1.diff-service"]["default"]
	if d := got.ProxyPlugins["lamina-diff-diff"]; d.Type != "diff" || d.Address != `/run/l/"x".sock` ||
		!reflect.DeepEqual(order, []any{"lamina-diff-diff", "walking"}) {
		t.Errorf("got %+v, in the order %v", d, order)
	}
	delete(got.ProxyPlugins, "lamina-diff-diff")
	s, err := readSettings(path, true)
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range got.ProxyPlugins {
		if p.Type != "snapshot" || p.Address != `/run/l/"x".sock` || p.Exports["root"] != "/srv/lamina/union" {
			t.Errorf("%s: %+v", name, p)
		}
		if has, _ := s.Capabilities(t.Context(), name); !slices.Equal(p.Capabilities, has) {
			t.Errorf("%s: capabilities %q, want %q", name, p.Capabilities, has)
		}
	}
}
