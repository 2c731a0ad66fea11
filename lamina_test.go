package lamina

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/userns"

	"github.com/lamina-snapshotter/lamina/metadata"
)

// needRoot skips a test that mounts, unless the environment says that it must be able to.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv("LAMINA_TEST_ROOT") == "1" {
		t.Fatal("LAMINA_TEST_ROOT is set, but this is not root")
	}
	t.Skip("opening a union root tries a mount, which needs root")
}

// tConfig is the default configuration on a root that does not exist yet.
func tConfig(t *testing.T) Config {
	t.Helper()
	c := DefaultConfig()
	c.Root = filepath.Join(t.TempDir(), "var", "lamina")
	return c
}

func mustOpen(t *testing.T, c Config) *Host {
	t.Helper()
	h, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

func TestDefaultConfigIsValid(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Error(err)
	}
}

func TestRebaseIsClaimedWhereItIsRight(t *testing.T) {
	here := !userns.RunningInUserNS()
	for want, changes := range map[bool][]func(*Config){
		here: {func(*Config) {}, func(c *Config) { c.Union.Driver = "overlay" }, func(c *Config) { c.Union.Metacopy = "on" }},
		false: {
			func(c *Config) { c.Snapshotters[DefaultName] = SnapshotterConfig{Backend: BackendThin} },
			func(c *Config) { c.Union.Driver = "aufs" },
			func(c *Config) { c.Union.UserXattr = "on" },
			func(c *Config) {
				c.Root = t.TempDir()
				text := []byte(`{"uuid":"a-store","start":1,"form":"aufs"}`)
				dir := c.ContentRoot(DefaultName)
				if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "owner"), text, 0o600)); err != nil {
					t.Fatal(err)
				}
			},
		},
	} {
		for i, change := range changes {
			c := DefaultConfig()
			c.Root = filepath.Join(t.TempDir(), "none")
			change(&c)
			has, _ := c.Capabilities(t.Context(), DefaultName)
			if got := slices.Contains(has, snapshots.RebaseCap); got != want {
				t.Errorf("%v, change %d: %v", want, i, got)
			}
		}
	}
}

func TestValidateNamesTheKey(t *testing.T) {
	for want, change := range map[string]func(*Config){
		`root: ""`:               func(c *Config) { c.Root = "" },
		`root: "var"`:            func(c *Config) { c.Root = "var" },
		`root: "/a,b"`:           func(c *Config) { c.Root = "/a,b" },
		"snapshotters: at least": func(c *Config) { c.Snapshotters = nil },
		`snapshotters."": `:      func(c *Config) { c.Snapshotters[""] = SnapshotterConfig{Backend: "union"} },
		`snapshotters."a/b": `:   func(c *Config) { c.Snapshotters["a/b"] = SnapshotterConfig{Backend: "union"} },
		`snapshotters.lamina.backend: "thick" is none of: union`: func(c *Config) {
			c.Snapshotters["lamina"] = SnapshotterConfig{Backend: "thick"}
		},
		"union.driver": func(c *Config) { c.Union.Driver = "zfs" },
		"union.sync":   func(c *Config) { c.Union.Sync = "maybe" },
		"thin.fs":      func(c *Config) { c.Thin.FS = "zfs" },
	} {
		c := DefaultConfig()
		change(&c)
		err := c.Validate()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
		if _, openErr := Open(t.Context(), c); openErr == nil || openErr.Error() != err.Error() {
			t.Errorf("Open says %v", openErr)
		}
	}
}

func TestBadRootNamesTheKey(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	foreign := t.TempDir()
	if err := os.WriteFile(filepath.Join(foreign, "lamina.db"), []byte("something else"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, root := range []string{file, filepath.Join(file, "below"), "/proc/lamina", "/proc/self", foreign} {
		c := DefaultConfig()
		c.Root = root
		if _, err := Open(t.Context(), c); err == nil || !strings.HasPrefix(err.Error(), "root: ") {
			t.Errorf("root %s: %v", root, err)
		}
	}
}

func TestOpen(t *testing.T) {
	needRoot(t)
	c := tConfig(t)
	c.Snapshotters["second"] = SnapshotterConfig{Backend: BackendUnion}
	h := mustOpen(t, c)
	if info, err := os.Stat(c.Root); err != nil || info.Mode() != fs.ModeDir|0o700 {
		t.Errorf("root: %v, %v", info.Mode(), err)
	}
	if got := h.Names(); !slices.Equal(got, []string{"lamina", "second"}) {
		t.Errorf("names are %q", got)
	}
	if _, err := h.Snapshotter("third"); !errdefs.IsNotFound(err) {
		t.Errorf("an unknown name: %v", err)
	}
	for _, name := range h.Names() {
		sn, err := h.Snapshotter(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := sn.(snapshots.Cleaner); !ok {
			t.Error("it is no Cleaner")
		}
		mounts, err := sn.Prepare(t.Context(), "key", "")
		if err != nil || len(mounts) == 0 || !strings.HasPrefix(mounts[0].Source, h.Config().ContentRoot(name)) {
			t.Errorf("%v, %v", mounts, err)
		}
	}
	if _, err := Open(t.Context(), c); !errors.Is(err, metadata.ErrLocked) {
		t.Errorf("opened twice: %v", err)
	}
	if err := errors.Join(h.Close(), h.Close()); err != nil {
		t.Error(err)
	}
	mustOpen(t, c)
}

// What stood open when Open failed is closed: the root can be opened again.
func TestOpenUnwinds(t *testing.T) {
	needRoot(t)
	c := tConfig(t)
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Open(cancelled, c); err == nil {
		t.Fatal("opened with a cancelled context")
	}
	union := c.ContentRoot(DefaultName)
	if err := os.MkdirAll(filepath.Join(union, "not ours"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), c); err == nil || !strings.Contains(err.Error(), union) {
		t.Fatalf("opened on a foreign place: %v", err)
	}
	if err := os.Remove(filepath.Join(union, "not ours")); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, c)
}
