package overlayaufs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/internal/idmap"
	"github.com/lamina-snapshotter/lamina/internal/space"
)

// Mounts returns how to mount a chain: a bind mount if one directory is all there is, an overlay or an aufs otherwise. It
// mounts nothing.
//
// If writable and the directory of chain[0] is missing, it is made again, empty, and so is its work directory alone: a
// power cut loses them that comes before anything in them is synced. Limits that are not those of the labels are corrected: Resize
// sets them before the labels are recorded, and Freeze lifts them before the content is recorded as committed. They leave room
// for the mount, as withRoom has it.
func (b *Backend) Mounts(
	ctx context.Context, chain []Content, writable bool, labels map[string]string,
) ([]mount.Mount, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("mounts in %s: %w", b.root, err)
	}
	lower := len(chain)
	if writable {
		if lower--; lower < 0 {
			return nil, fmt.Errorf("mounts in %s: an empty chain has nothing to write to: %w", b.root, unix.EINVAL)
		}
	}
	if err := b.checkDepth(lower, writable); err != nil {
		return nil, err
	}
	ids, err := idmap.FromLabels(labels)
	if err == nil && writable {
		err = b.checkLoose(lower, labels, ids) // labels may have changed
	}
	if err != nil {
		return nil, err
	}
	if writable {
		if err := b.readyToWrite(ctx, chain, labels, ids); err != nil {
			return nil, err
		}
	}
	if err := b.link(chain); err != nil {
		return nil, fmt.Errorf("mounts in %s: %w", b.root, space.Explain(err, b.root))
	}
	if ids == nil {
		return b.plan(chain, writable, labels), nil
	}
	if err := b.checkIDMap(ctx); err != nil {
		return nil, err
	}
	return b.planMapped(chain, writable, labels, ids), nil
}

// readyToWrite sees to it that chain[0] can be mounted writable. What was made for this call is as Make has left it: whole, and
// without a mark.
func (b *Backend) readyToWrite(ctx context.Context, chain []Content, labels map[string]string, ids *idmap.Map) error {
	b.tolerate(ctx, chain[0], labels)
	_, fresh := b.fresh.LoadAndDelete(chain[0].ID)
	if !fresh {
		if err := b.restore(ctx, chain, labels); err != nil {
			return err
		}
	}
	if err := b.correctLimits(chain, labels); err != nil {
		return err
	}
	if volatile := b.isVolatile(chain, labels); volatile || !fresh {
		if err := b.claimBoot(ctx, chain[0].ID, volatile); err != nil {
			return err
		}
	}
	if fresh {
		return nil
	}
	return b.checkIDs(chain[0].ID, ids)
}

// restore makes what is missing of chain[0] again.
func (b *Backend) restore(ctx context.Context, chain []Content, labels map[string]string) error {
	lost, err := b.lost(chain[0].ID)
	if lost == "" || err != nil {
		return err
	}
	// Two calls of Mounts may find it missing at once.
	_, err, _ = b.restoring.Do(strconv.FormatUint(chain[0].ID, 10), func() (any, error) {
		switch lost, err := b.lost(chain[0].ID); lost {
		case fsName: // nothing that was synced was in it
			_, err = b.Make(ctx, chain[0], chain[1:], labels)
			b.fresh.Delete(chain[0].ID) // this call of Mounts looks at it
			return nil, err
		case workName: // btrfs brings back a directory above a file that was synced, and not the ones beside it
			return nil, os.Mkdir(b.path(chain[0].ID, workName), workMode)
		default:
			return nil, err
		}
	})
	return err
}

// checkDepth refuses a chain that the kernel would refuse when it is mounted, where the reason is hard to see.
func (b *Backend) checkDepth(lower int, writable bool) error {
	if err := b.strategy(false).checkDepth(lower, writable); err != nil {
		return fmt.Errorf("chain in %s: %w", b.root, err)
	}
	return nil
}

// lost returns what is missing of content id, fsName or workName, or "".
func (b *Backend) lost(id uint64) (string, error) {
	for _, name := range []string{fsName, workName} {
		if _, err := os.Lstat(b.path(id, name)); errors.Is(err, os.ErrNotExist) {
			return name, nil
		} else if err != nil {
			return "", err
		}
	}
	return "", nil
}

// isVolatile reports whether the writable content on top of a chain is mounted volatile: that of a container, and not one
// that a layer is unpacked into.
func (b *Backend) isVolatile(chain []Content, labels map[string]string) bool {
	return b.volatile && len(chain) > 1 && !isUnpack(labels)
}

// plan returns the mounts of a chain, which is not empty if writable. It depends on its arguments and what Open has found
// alone.
//
// containerd reads the result. An active snapshot whose last mount is read-only is one that somebody has filled already,
// so it unpacks nothing into it. And into a bind mount it unpacks a layer as a base: it deletes what the layer deletes, which is
// not there where the layers below come at the commit, and deleted files would be back. So such a layer has an overlay
// mount, though of itself alone: containerd then writes into upperdir= what overlayfs takes for a deletion.
func (b *Backend) plan(chain []Content, writable bool, labels map[string]string) []mount.Mount {
	empty := filepath.Join(b.root, emptyName)
	if len(chain) == 0 {
		return bind(empty, false)
	}
	layers, lower := make([]string, len(chain), len(chain)+1), b.lowerName(chain)
	for i, c := range chain {
		layers[i] = filepath.Join(b.root, lower(c.ID))
	}
	if len(chain) == 1 {
		if !writable || !b.isLoose(labels) {
			return bind(layers[0], writable)
		}
		layers = append(layers, empty) // overlayfs takes no mount without lowerdir=
	}
	if !writable {
		return b.strategy(false).readOnly(layers)
	}
	return b.strategy(b.isVolatile(chain, labels)).writable(b.path(chain[0].ID, fsName), b.path(chain[0].ID, workName), layers[1:])
}

func bind(dir string, writable bool) []mount.Mount {
	access := "ro"
	if writable {
		access = "rw"
	}
	return []mount.Mount{{Type: "bind", Source: dir, Options: []string{access, "rbind"}}}
}
