package overlayaufs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Mounts returns how to mount a chain: a bind mount if one directory is all there is, an overlay otherwise. It mounts
// nothing.
//
// If writable and the directory of chain[0] is missing, it is made again, empty, and so is its work directory alone: a
// power cut loses them that comes before anything in them is synced. Limits that are not those of the labels are corrected: Resize
// sets them before the labels are recorded, and Freeze lifts them before the content is recorded as committed.
func (b *Backend) Mounts(
	ctx context.Context, chain []Content, writable bool, labels map[string]string,
) ([]mount.Mount, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("mounts in %s: %w", b.root, err)
	}
	if err := b.checkDepth(chain, writable); err != nil {
		return nil, err
	}
	if writable {
		if len(chain) == 0 {
			return nil, fmt.Errorf("mounts in %s: an empty chain has nothing to write to: %w", b.root, unix.EINVAL)
		}
		if err := b.restore(ctx, chain, labels); err != nil {
			return nil, err
		}
		if err := b.correctLimits(chain[0], labels); err != nil {
			return nil, err
		}
		if err := b.claimBoot(ctx, chain[0].ID); err != nil {
			return nil, err
		}
	}
	return b.plan(chain, writable), nil
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
func (b *Backend) checkDepth(chain []Content, writable bool) error {
	lower := len(chain)
	if writable {
		lower--
	}
	if lower > maxLower {
		return fmt.Errorf("chain in %s: %w: overlayfs stacks no more than %d layers, and there are %d below",
			b.root, errdefs.ErrInvalidArgument, maxLower, lower)
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

// plan returns the mount of a chain, which is not empty if writable. It depends on its arguments and the options alone.
//
// containerd reads the result: an active snapshot whose last mount is read-only is one that somebody has filled
// already, so it unpacks nothing into it.
func (b *Backend) plan(chain []Content, writable bool) []mount.Mount {
	if len(chain) == 0 {
		return bind(filepath.Join(b.root, emptyName), false)
	}
	if len(chain) == 1 {
		return bind(b.path(chain[0].ID, fsName), writable)
	}
	layers := make([]string, len(chain))
	for i, c := range chain {
		layers[i] = b.path(c.ID, fsName)
	}
	if !writable {
		return b.overlay.readOnly(layers)
	}
	o := b.overlay
	if b.volatile {
		o.options = append(o.options[:len(o.options):len(o.options)], "volatile")
	}
	return o.writable(layers[0], b.path(chain[0].ID, workName), layers[1:])
}

func bind(dir string, writable bool) []mount.Mount {
	access := "ro"
	if writable {
		access = "rw"
	}
	return []mount.Mount{{Type: "bind", Source: dir, Options: []string{access, "rbind"}}}
}
