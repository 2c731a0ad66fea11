// Package lamina puts the parts of the snapshotter together: a root directory with one store in it, the backends that
// the configuration asks for, and the snapshotters that run on them. The daemon (cmd/lamina) and the plugins that a
// containerd can link in (plugin.go) both open a Host and differ only in how callers reach it.
//
// A root belongs to one process at a time; the store's lock sees to that.
package lamina

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/lamina-snapshotter/lamina/dmthin"
	"github.com/lamina-snapshotter/lamina/metadata"
	"github.com/lamina-snapshotter/lamina/overlayaufs"
	"github.com/lamina-snapshotter/lamina/snapshotter"
)

// The values that a configuration has where nobody sets others.
const (
	// DefaultRoot is where the store and the layers lie.
	DefaultRoot = "/var/lib/lamina"
	// DefaultName is what containerd calls the snapshotter.
	DefaultName = "lamina"
	// BackendUnion keeps a layer as a directory and mounts a union of them.
	BackendUnion = "union"
	// BackendThin keeps a layer as a volume of a device-mapper thin pool.
	BackendThin = "thin"
)

// A Config says where a Host keeps its things and which snapshotters it has.
type Config struct {
	// Root is an absolute path. It is made if it is missing.
	Root string `toml:"root"`
	// Snapshotters are the names by which containerd calls, and what stands behind each.
	Snapshotters map[string]SnapshotterConfig `toml:"snapshotters"`
	// Union holds the options of the union backend. Its Root is set by Open.
	Union overlayaufs.Config `toml:"union"`
	// Thin holds the options of the thin backend. Its Root is set by Open.
	Thin dmthin.Config `toml:"thin"`
}

// A SnapshotterConfig binds one snapshotter name to a backend.
type SnapshotterConfig struct {
	// Backend is "union" or "thin".
	Backend string `toml:"backend"`
}

// DefaultConfig returns one snapshotter named "lamina" of the union backend under /var/lib/lamina.
func DefaultConfig() Config {
	return Config{
		Root:         DefaultRoot,
		Snapshotters: DefaultSnapshotters(),
		Union:        overlayaufs.DefaultConfig(),
		Thin:         dmthin.DefaultConfig(),
	}
}

// DefaultSnapshotters returns what is served where the configuration names no snapshotter.
func DefaultSnapshotters() map[string]SnapshotterConfig {
	return map[string]SnapshotterConfig{DefaultName: {Backend: BackendUnion}}
}

// Validate reports everything that is wrong with c before anything is opened. Every message begins with the key that it
// is about.
func (c Config) Validate() error {
	var errs []error
	if !filepath.IsAbs(c.Root) {
		errs = append(errs, fmt.Errorf("root: %q is not an absolute path", c.Root))
	}
	if strings.ContainsAny(c.Root, `:,\`) {
		errs = append(errs, fmt.Errorf(`root: %q has a ":", "," or "\" in it, which mount options cannot carry`, c.Root))
	}
	if strings.ContainsFunc(c.Root, unicode.IsControl) {
		errs = append(errs, fmt.Errorf("root: %q has a control character in it, which lists of mounts and of paths cannot carry", c.Root))
	}
	if len(c.Snapshotters) == 0 {
		errs = append(errs, errors.New("snapshotters: at least one is needed"))
	}
	for _, name := range slices.Sorted(maps.Keys(c.Snapshotters)) {
		// containerd makes a plugin id and a bucket name of it.
		if err := identifiers.Validate(name); err != nil {
			errs = append(errs, fmt.Errorf("snapshotters.%q: %w", name, err))
		}
		if b := c.Snapshotters[name].Backend; b != BackendUnion && b != BackendThin {
			errs = append(errs, fmt.Errorf("snapshotters.%s.backend: %q is none of: %s, %s", name, b, BackendUnion, BackendThin))
		}
	}
	errs = append(errs, c.Union.Validate(), c.Thin.Validate())
	return errors.Join(errs...)
}

// ContentRoot returns the directory in which the contents of the named snapshotter lie. containerd's CRI and the kubelet
// measure the image file system by it.
func (c Config) ContentRoot(name string) string {
	switch c.Snapshotters[name].Backend {
	case BackendUnion:
		return filepath.Join(c.Root, "union")
	case BackendThin:
		return filepath.Join(c.Root, "thin")
	default:
		return c.Root
	}
}

// A Host is an open root: the store, the backends, and the snapshotters on them. Its methods may be called from several
// goroutines at once.
type Host struct {
	config       Config
	store        *metadata.Store
	thin         *dmthin.Backend      // nil if no snapshotter uses it, or it was set aside at the start
	union        *overlayaufs.Backend // likewise
	set          *snapshotter.Set
	snapshotters map[string]snapshots.Snapshotter
	started      time.Time
	facts        *facts
}

// Open makes the root if it is missing, takes its lock, and opens what c asks for. It returns metadata.ErrLocked at once
// if another process has the root open to write, and after ten seconds if one still reads it. On error nothing stays open.
func Open(ctx context.Context, c Config) (*Host, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if err := makeRoot(ctx, c.Root); err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	store, err := openStore(ctx, c.storePath(), readersWait)
	if err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	backends, err := c.openBackends(ctx, store.UUID())
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	set, err := snapshotter.Open(ctx, snapshotter.Config{Store: store, Backends: backends})
	if err != nil {
		return nil, errors.Join(err, closeBackends(backends), store.Close())
	}
	h := &Host{config: c, store: store, set: set, started: time.Now().UTC()}
	h.facts = &facts{config: c, store: store, host: h}
	h.thin, _ = backends[metadata.Volume].(*dmthin.Backend)
	h.union, _ = backends[metadata.Directory].(*overlayaufs.Backend)
	if err := h.bind(); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

// openBackends opens each backend that a snapshotter of c uses, once, for the store of that uuid.
func (c Config) openBackends(ctx context.Context, store string) (map[metadata.Medium]snapshotter.Backend, error) {
	backends := make(map[metadata.Medium]snapshotter.Backend)
	for name := range c.Snapshotters {
		medium := c.medium(name)
		if backends[medium] != nil {
			continue
		}
		b, err := c.openBackend(ctx, name, store)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("snapshotters.%s: %w", name, err), closeBackends(backends))
		}
		backends[medium] = b
	}
	return backends, nil
}

// openBackend opens the backend of the named snapshotter.
func (c Config) openBackend(ctx context.Context, name, store string) (snapshotter.Backend, error) {
	root := c.ContentRoot(name)
	if c.medium(name) == metadata.Volume {
		c.Thin.Root, c.Thin.Store = root, store
		b, err := dmthin.Open(ctx, c.Thin)
		if err != nil {
			return nil, err // not b: a nil *Backend in an interface is not nil
		}
		return b, nil
	}
	c.Union.Root = root
	b, err := overlayaufs.Open(ctx, c.Union)
	if err != nil {
		return nil, err
	}
	log.G(ctx).WithField("root", root).WithField("driver", b.Driver()).WithField("options", b.Options()).
		WithField("quotas", b.Quotas()).Info("opened the union backend")
	return b, nil
}

func closeBackends(backends map[metadata.Medium]snapshotter.Backend) error {
	var errs []error
	for _, b := range backends {
		errs = append(errs, b.Close())
	}
	return errors.Join(errs...)
}

// medium returns what the new contents of a snapshotter are made of.
func (c Config) medium(name string) metadata.Medium {
	switch c.Snapshotters[name].Backend {
	case BackendUnion:
		return metadata.Directory
	case BackendThin:
		return metadata.Volume
	default:
		return metadata.NoMedium
	}
}

// bind makes the snapshotter of each name.
func (h *Host) bind() error {
	h.snapshotters = make(map[string]snapshots.Snapshotter, len(h.config.Snapshotters))
	for name := range h.config.Snapshotters {
		sn, err := h.set.Snapshotter(name, h.config.medium(name))
		if err != nil {
			return fmt.Errorf("snapshotters.%s: %w", name, err)
		}
		h.snapshotters[name] = sn
	}
	return nil
}

// storePath is the file of the store.
func (c Config) storePath() string { return filepath.Join(c.Root, "lamina.db") }

// Locked returns metadata.ErrLocked if another process has the root open at this moment. It changes nothing, and waits for nothing.
func (c Config) Locked() error {
	if err := metadata.Locked(c.storePath()); err != nil {
		return fmt.Errorf("root: %w", err)
	}
	return nil
}

// AddDevice takes another block device into the pool of the thin backend, which lies on the devices that c names. Nobody may
// have the root open: that is metadata.ErrLocked.
func AddDevice(ctx context.Context, c Config, device string) error {
	if err := c.Validate(); err != nil {
		return err
	}
	store, err := metadata.Open(c.storePath(), metadata.Options{ReadOnly: true})
	if err != nil {
		return fmt.Errorf("root: %w", err)
	}
	c.Thin.Root, c.Thin.Store = filepath.Join(c.Root, "thin"), store.UUID()
	return errors.Join(dmthin.AddDevice(ctx, c.Thin, device), store.Close())
}

// Config returns the configuration that h was opened with.
func (h *Host) Config() Config { return h.config }

// Names returns the names of the snapshotters, sorted.
func (h *Host) Names() []string {
	return slices.Sorted(maps.Keys(h.snapshotters))
}

// Snapshotter returns the snapshotter of that name, which is a snapshots.Cleaner too. It lives until h is closed; its own
// Close ends nothing that another name uses. A name that h does not have is errdefs.ErrNotFound.
func (h *Host) Snapshotter(name string) (snapshots.Snapshotter, error) {
	sn, ok := h.snapshotters[name]
	if !ok {
		return nil, fmt.Errorf("snapshotter %q: %w", name, errdefs.ErrNotFound)
	}
	return sn, nil
}

// Changes calls fn for what the mounts upper change in the mounts lower, as a snapshotter.Differ does. Mounts that are not Lamina's
// are errdefs.ErrNotImplemented.
func (h *Host) Changes(ctx context.Context, lower, upper []mount.Mount, fn func(snapshotter.Change) error) error {
	return h.set.Changes(ctx, lower, upper, fn)
}

// StopDeleting ends what runs in the background, and the calls of Cleanup that wait for it. A daemon's stop begins with
// it: a deletion may take longer than the stop may.
func (h *Host) StopDeleting() { h.set.StopDeleting() }

// Close waits, bounded, for calls under way, then closes the backends and the store. Later calls do nothing and return
// the first one's error.
func (h *Host) Close() error { return h.set.Close() }

// GiveBack lets the process go of pages of the store that it has read, until it reads them again.
func (h *Host) GiveBack() error { return h.store.GiveBack() }
