package overlayaufs

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots"
)

// Measure returns what a content in a root takes up that no Backend has open, by a walk. It changes nothing. That the content is
// missing is fs.ErrNotExist.
func Measure(ctx context.Context, root string, id uint64) (usage snapshots.Usage, err error) {
	was, err := readOwner(root)
	if err != nil {
		return snapshots.Usage{}, err
	}
	b, err := newBackend(Config{Root: root})
	if err != nil {
		return snapshots.Usage{}, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	if was.Form == formAufs {
		b.aufs = &aufs{}
	}
	walked, err := b.walked(ctx, id)
	if err != nil {
		return snapshots.Usage{}, fmt.Errorf("usage in %s: %w", root, err)
	}
	return *walked, nil
}
