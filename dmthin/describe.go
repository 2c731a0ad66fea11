package dmthin

import (
	"context"
	"errors"
	"io/fs"

	"github.com/containerd/containerd/v2/core/mount"

	"github.com/lamina-snapshotter/lamina/internal/idmap"
)

// Describe returns what Mounts would for a content whose device there is and whose file system is known, nil for any other. It
// changes nothing.
func (b *Backend) Describe(ctx context.Context, chain []Content, writable bool, labels map[string]string) ([]mount.Mount, error) {
	if len(chain) == 0 {
		return nil, nil
	}
	volume, err := b.begin(ctx, chain[0].ID)
	if err != nil {
		return nil, err
	}
	ids, err := idmap.FromLabels(labels)
	if err != nil {
		return nil, err
	}
	active := false
	err = b.pool.do(ctx, func() error {
		info, err := b.pool.volume(volume)
		active = err == nil && info.ActiveTable && !info.DeferredRemove
		return err
	}, volume)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	kind := b.known(chain[0].ID).kind
	if err != nil || !active || kind == nil {
		return nil, err
	}
	m := mount.Mount{Type: kind.String(), Source: b.pool.Path(volume), Options: kind.mountOptions(!writable)}
	if ids != nil {
		m.Options = append(ids.Options(), m.Options...)
	}
	return []mount.Mount{m}, nil
}
