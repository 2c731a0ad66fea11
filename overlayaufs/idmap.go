package overlayaufs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/internal/features"
	"github.com/lamina-snapshotter/lamina/internal/idmap"
)

// ProbeIDMap returns nil if the layers of a place in cfg.Root can be mounted with the ids of their owners mapped to others,
// and otherwise an error that says why not. It tries that: an idmapped mount of the root's file system, and an overlay on it.
// It needs root, takes milliseconds, and at most a minute where the disk hangs, and changes nothing: all that it mounts is
// seen by nobody else and ends with it, even if it is killed.
//
// If there is no root yet, it tries the directory in which the root will be made, or the one above, and so on.
func ProbeIDMap(ctx context.Context, cfg Config) error {
	return cfg.inTime(ctx, func(ctx context.Context) error {
		was, err := readOwner(cfg.Root)
		if cfg.Driver == driverAufs || err == nil && was.Form == formAufs {
			return errAufsMaps
		}
		return cfg.tryIDMap(ctx)
	})
}

var errAufsMaps = errors.New("aufs has no mounts that map ids")

// inTime calls try, with all that it asks the disk, and waits for it no longer than probeTimeout.
func (c Config) inTime(ctx context.Context, try func(context.Context) error) error {
	if err := c.checkRoot(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- try(ctx) }()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("union root %s: %w", c.Root, err)
	}
	return nil
}

// tryIDMap is ProbeIDMap for overlayfs, whatever has written the layers there are.
func (c Config) tryIDMap(ctx context.Context) error {
	dir, err := features.Existing(c.Root)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	t, err := idmap.NewTrial(ctx, st.Uid, st.Gid, fsType(dir))
	if err != nil {
		return err
	}
	if isoErr := isolated(func() { err = tryMapped(t, dir) }); isoErr != nil {
		err = isoErr
	}
	return errors.Join(err, t.Close())
}

// tryMapped looks at the tree in dir through an overlay on an idmapped mount of it. The overlay needs another directory below,
// and all of them a place: they are in a tmpfs, mounted over what this thread alone sees as dir.
func tryMapped(t *idmap.Trial, dir string) error {
	tree, err := t.Clone(dir)
	if err != nil {
		return err
	}
	defer tree.Close() //nolint:errcheck // nothing was written through it
	place := dir
	if dir == "/" {
		place = "/proc"
	}
	if err := unix.Mount("tmpfs", place, "tmpfs", 0, "size=1m,mode=700"); err != nil {
		return &os.PathError{Op: opMount, Path: place, Err: err}
	}
	mapped, other, merged := filepath.Join(place, "mapped"), filepath.Join(place, "other"), filepath.Join(place, "merged")
	for _, d := range []string{mapped, other, merged} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return err
		}
	}
	if err := unix.MoveMount(int(tree.Fd()), "", unix.AT_FDCWD, mapped, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "move_mount", Path: mapped, Err: err}
	}
	if err := unix.Mount("overlay", merged, "overlay", unix.MS_RDONLY, "lowerdir="+mapped+":"+other); err != nil {
		return fmt.Errorf("overlayfs of this kernel (%s; 5.19 has it) stacks no idmapped layers: %w",
			release(), &os.PathError{Op: opMount, Path: merged, Err: err})
	}
	var st unix.Stat_t
	if err := unix.Stat(merged, &st); err != nil {
		return &os.PathError{Op: "stat", Path: merged, Err: err}
	}
	return t.Check(&st)
}

// checkIDMap refuses a map that the kernel cannot mount with, where its own error would be hard to read.
func (b *Backend) checkIDMap(ctx context.Context) error {
	if b.mapsIDs.Load() {
		return nil
	}
	err := errAufsMaps
	if b.aufs == nil {
		err = ProbeIDMap(ctx, b.config)
	}
	if err != nil {
		return fmt.Errorf("the snapshot is to have other ids (see the capability remap-ids): %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	b.mapsIDs.Store(true)
	return nil
}

// checkLoose refuses a map for a layer that is unpacked beside those below it: it is mounted as if something were below
// (isLoose), and there is nothing that could be mapped.
func (b *Backend) checkLoose(below int, labels map[string]string, m *idmap.Map) error {
	if m == nil || below > 0 || !b.isLoose(labels) {
		return nil
	}
	return fmt.Errorf("a layer that gets its parent at its commit cannot be unpacked with an id map (labels %s and %s): %w",
		snapshots.LabelSnapshotUIDMapping, snapshots.LabelSnapshotGIDMapping, errdefs.ErrInvalidArgument)
}

// planMapped is plan with a map of ids. containerd's mount code reads uidmap= and gidmap= (core/mount/mount_linux.go): it gives a bind mount the
// map, and an overlay lower directories that have it. The upper directory of an overlay has none: what a container
// writes there has the host's ids on the disk.
//
// A read-only bind mount it leaves without a map. So a view of one layer is an overlay of that and an empty one. That of no
// layer has nothing in it to be mapped.
//
// What it maps is the directory that the lower ones have in common, at another path, which the kernel then shows as that of the
// layers. An only one would have nothing of its number in that, and nobody could tell that it is in use; so it gets the empty
// one below it.
func (b *Backend) planMapped(chain []Content, writable bool, labels map[string]string, m *idmap.Map) []mount.Mount {
	empty := filepath.Join(b.root, emptyName)
	mounts := b.plan(chain, writable, labels)
	switch {
	case len(chain) == 0:
		return mounts
	case len(chain) == 1 && !writable:
		mounts = b.overlay.readOnly([]string{b.path(chain[0].ID, fsName), empty})
	case len(chain) == 2 && writable:
		last := mounts[0].Options
		last[len(last)-1] += ":" + empty
	}
	for i := range mounts {
		mounts[i].Options = append(m.Options(), mounts[i].Options...)
	}
	return mounts
}

// mapped returns the root directory of a writable layer upon one that has r. It is that of the mounted whole, and is not
// mapped itself (planMapped), so it belongs to whom the map shows as the owner of the one below.
func (r rootDir) mapped(m *idmap.Map) (rootDir, error) {
	user, group, ok := m.Host(uint32(r.uid), uint32(r.gid))
	if !ok {
		return r, fmt.Errorf("the root directory belongs to %d:%d, which the id map of the labels lacks: %w",
			r.uid, r.gid, errdefs.ErrInvalidArgument)
	}
	r.uid, r.gid = int(user), int(group)
	return r, nil
}

// markIDs records that what is written to the content in dir has the ids of the host that m gives, in a symbolic link, which is made
// at once with its target. The target is a digest: a map can be longer than a link.
//
// A power cut may take the link and leave what was synced in fs beside it (btrfs, see make). So that there is none tells nothing.
func markIDs(dir string, m *idmap.Map) error {
	return os.Symlink(digest(m), filepath.Join(dir, idsName))
}

// checkIDs refuses a content that was made with another map than m, which may be nil: what has been written to it would belong
// to other users than before.
func (b *Backend) checkIDs(id uint64, m *idmap.Map) error {
	was, err := b.madeWith(id)
	if err != nil || was == "" || m != nil && was == digest(m) {
		return err
	}
	return fmt.Errorf("%s was made with another id map than the labels %s and %s have now: %w", b.path(id),
		snapshots.LabelSnapshotUIDMapping, snapshots.LabelSnapshotGIDMapping, errdefs.ErrFailedPrecondition)
}

// checkUnmapped refuses a content with a map that is to become a layer. What is written there has the ids of one container on
// the host, which mean nothing to another.
func (b *Backend) checkUnmapped(id uint64) error {
	was, err := b.madeWith(id)
	if err != nil || was == "" {
		return err
	}
	return fmt.Errorf("%s was made with an id map, and its files have ids that only containers with that map can have: "+
		"it cannot become a layer: %w", b.path(id), errdefs.ErrFailedPrecondition)
}

// madeWith returns what markIDs recorded, or "".
func (b *Backend) madeWith(id uint64) (string, error) {
	was, err := os.Readlink(b.path(id, idsName))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	return was, err
}

func digest(m *idmap.Map) string {
	sum := sha256.Sum256([]byte(strings.Join(m.Options(), " ")))
	return hex.EncodeToString(sum[:])
}
