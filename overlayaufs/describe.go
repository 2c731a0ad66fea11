package overlayaufs

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/mount"

	"github.com/lamina-snapshotter/lamina/internal/idmap"
)

// Describe returns what Mounts would, or nil where something of it is missing, which Mounts would make. It changes nothing.
func (b *Backend) Describe(ctx context.Context, chain []Content, writable bool, labels map[string]string) ([]mount.Mount, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	ids, err := idmap.FromLabels(labels)
	if err != nil || writable && len(chain) == 0 {
		return nil, err
	}
	if writable {
		if lost, err := b.lost(chain[0].ID); err != nil || lost != "" {
			return nil, err
		}
	}
	name := b.lowerName(chain)
	for _, c := range chain {
		if _, err := os.Stat(filepath.Join(b.root, name(c.ID))); err != nil {
			return nil, missing(err)
		}
	}
	if ids == nil {
		return b.plan(chain, writable, labels), nil
	}
	return b.planMapped(chain, writable, labels, ids), nil
}

// missing returns nil for what is not there.
func missing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
