package backendtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	cfs "github.com/containerd/continuity/fs"

	"github.com/lamina-snapshotter/lamina/snapshotter"
)

// Dirs is the plainest Backend: a content is a directory that holds the whole tree, a copy of its parent's. It serves
// tests, and as an example of what the interface asks.
type Dirs struct {
	root string

	// Before, if set, is called before each step with its name and number; its error is the step's. Tests block, fail and
	// count with it.
	Before func(ctx context.Context, step string, id uint64) error

	mu     sync.Mutex
	frozen map[uint64]bool
}

// NewDirs returns a backend whose place is the directory root, which need not exist.
func NewDirs(root string) *Dirs {
	return &Dirs{root: root, frozen: map[uint64]bool{}}
}

type owner struct {
	UUID  string
	Start uint64
}

func (d *Dirs) path(id uint64) string { return filepath.Join(d.root, strconv.FormatUint(id, 10)) }

func (d *Dirs) before(ctx context.Context, step string, id uint64) error {
	if d.Before != nil {
		if err := d.Before(ctx, step, id); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// Owner reads the file "owner" in the root.
func (d *Dirs) Owner(context.Context) (string, uint64, error) {
	b, err := os.ReadFile(filepath.Join(d.root, "owner"))
	if errors.Is(err, fs.ErrNotExist) {
		if entries, _ := os.ReadDir(d.root); len(entries) > 0 {
			return "", 0, fmt.Errorf("%s is not empty and does not say whose it is", d.root)
		}
		return "", 0, nil
	}
	if err != nil {
		return "", 0, err
	}
	var o owner
	if err := json.Unmarshal(b, &o); err != nil || o.UUID == "" {
		return "", 0, fmt.Errorf("%s/owner is malformed", d.root)
	}
	return o.UUID, o.Start, nil
}

// Claim writes the file "owner".
func (d *Dirs) Claim(_ context.Context, uuid string, start uint64) error {
	b, err := json.Marshal(owner{uuid, start})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(d.root, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(d.root, "owner"), b, 0o600)
}

// Make copies the tree of chain[0].
func (d *Dirs) Make(ctx context.Context, c snapshotter.Content, chain []snapshotter.Content, _ map[string]string) (uint64, error) {
	if err := d.before(ctx, "make", c.ID); err != nil {
		return 0, err
	}
	if err := os.RemoveAll(d.path(c.ID)); err != nil {
		return 0, err
	}
	if err := os.Mkdir(d.path(c.ID), 0o755); err != nil || len(chain) == 0 {
		return 0, err
	}
	return 0, cfs.CopyDir(d.path(c.ID), d.path(chain[0].ID))
}

// Mounts is a bind mount of chain[0].
func (d *Dirs) Mounts(ctx context.Context, chain []snapshotter.Content, writable bool, _ map[string]string) ([]mount.Mount, error) {
	if err := d.before(ctx, "mounts", 0); err != nil {
		return nil, err
	}
	m := mount.Mount{Type: "bind", Source: filepath.Join(d.root, "empty"), Options: []string{"ro", "rbind"}}
	if writable {
		m.Options[0] = "rw"
	}
	if len(chain) > 0 {
		m.Source = d.path(chain[0].ID)
		if _, err := os.Stat(m.Source); writable && errors.Is(err, fs.ErrNotExist) {
			if _, err := d.Make(ctx, chain[0], chain[1:], nil); err != nil {
				return nil, err
			}
		}
	} else if err := os.MkdirAll(m.Source, 0o755); err != nil {
		return nil, err
	}
	return []mount.Mount{m}, nil
}

// Freeze notes that the content is frozen.
func (d *Dirs) Freeze(ctx context.Context, chain []snapshotter.Content) (*snapshots.Usage, error) {
	if err := d.before(ctx, "freeze", chain[0].ID); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.frozen[chain[0].ID] = true
	return nil, nil
}

// Frozen reports whether Freeze has been called.
func (d *Dirs) Frozen(id uint64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.frozen[id]
}

// Usage walks the directory.
func (d *Dirs) Usage(ctx context.Context, chain []snapshotter.Content) (snapshots.Usage, error) {
	if err := d.before(ctx, "usage", chain[0].ID); err != nil {
		return snapshots.Usage{}, err
	}
	u, err := cfs.DiskUsage(ctx, d.path(chain[0].ID))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return snapshots.Usage{Inodes: u.Inodes, Size: u.Size}, err
}

// Delete removes the directory.
func (d *Dirs) Delete(ctx context.Context, c snapshotter.Content) error {
	if err := d.before(ctx, "delete", c.ID); err != nil {
		return err
	}
	return os.RemoveAll(d.path(c.ID))
}

// List reads the root.
func (d *Dirs) List(ctx context.Context) (ids []uint64, err error) {
	entries, err := os.ReadDir(d.root)
	for _, e := range entries {
		if id, err := strconv.ParseUint(e.Name(), 10, 64); err == nil {
			ids = append(ids, id)
		}
	}
	return ids, errors.Join(err, ctx.Err())
}

// Close does nothing.
func (d *Dirs) Close() error { return nil }
