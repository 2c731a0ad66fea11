package doctor

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/lamina-snapshotter/lamina/internal/holders"
	"github.com/lamina-snapshotter/lamina/metadata"
	"github.com/lamina-snapshotter/lamina/overlayaufs"
)

// A mounted is a content that a mount shows.
type mounted struct {
	namespace uint64
	at        string
	medium    metadata.Medium
	number    uint64
}

// A mountFinder returns who mounts which contents, in all mount namespaces.
type mountFinder func(context.Context) (map[mounted]holders.Holder, error)

// directoryMounts reports mounts of directories that neither a record nor the trash names.
func (e *examination) directoryMounts(ctx context.Context) error {
	return e.mounts(ctx, metadata.Directory, e.mountsOfDirectories)
}

// volumeMounts does the same for volumes.
func (e *examination) volumeMounts(ctx context.Context) error {
	return e.mounts(ctx, metadata.Volume, e.mountsOfVolumes)
}

// mounts reports the mounts of contents that nobody knows any more. What is in the trash is deleted when it is mounted no more,
// and said there. A mount that is being unmounted while its snapshot is removed is looked at again.
func (e *examination) mounts(ctx context.Context, medium metadata.Medium, find mountFinder) error {
	before, err := find(ctx)
	if err != nil || len(before) == 0 {
		return err
	}
	now, err := e.again(ctx, medium)
	if err != nil {
		return err
	}
	forget := func(known func(mounted) bool) {
		for m := range before {
			if known(m) {
				delete(before, m)
			}
		}
	}
	forget(now.has)
	if e.Live != nil && len(before) > 0 {
		after, err := find(ctx)
		if err != nil {
			return err
		}
		if now, err = readContents(ctx, e.Store); err != nil {
			return err
		}
		forget(now.has)
		forget(func(m mounted) bool { _, still := after[m]; return !still })
	}
	e.staleMounts(before)
	return nil
}

// staleMounts reports one line a mount, however many layers of it are gone.
func (e *examination) staleMounts(stale map[mounted]holders.Holder) {
	type place struct {
		namespace uint64
		at        string
	}
	lowest := map[place]mounted{}
	for m := range stale {
		p := place{m.namespace, m.at}
		if first, ok := lowest[p]; !ok || m.number < first.number {
			lowest[p] = m
		}
	}
	for _, m := range lowest {
		f := finding(MountStale, m.at, "it shows the %s %d, which has no record", m.medium, m.number)
		f.Holders = []string{stale[m].String()}
		e.found(f)
	}
}

// has reports whether a content that a mount shows is known.
func (c contents) has(m mounted) bool {
	records := c.directories
	if m.medium == metadata.Volume {
		records = c.volumes
	}
	_, recorded := records[m.number]
	return recorded || c.trashed[m.medium][m.number]
}

// mountsOfDirectories finds bind mounts and overlays of directories, and mounts in them.
func (e *examination) mountsOfDirectories(ctx context.Context) (map[mounted]holders.Holder, error) {
	root, err := unhung(ctx, func() (holders.Directory, error) { return holders.Locate(e.UnionRoot) })
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return findMounts(ctx, metadata.Directory, func(m *holders.Mount) (ids []uint64) {
		for _, rel := range root.UsesSurely(m) {
			if id, ok := overlayaufs.InContent(e.UnionRoot, filepath.Join(e.UnionRoot, rel)); ok {
				ids = append(ids, id)
			}
		}
		return ids
	})
}

// mountsOfVolumes finds file systems on volumes.
func (e *examination) mountsOfVolumes(ctx context.Context) (map[mounted]holders.Holder, error) {
	prefix := "/dev/mapper/lamina-" + e.Store.UUID()[:8] + "-"
	return findMounts(ctx, metadata.Volume, func(m *holders.Mount) []uint64 {
		if text, ok := strings.CutPrefix(m.Source, prefix); ok {
			if n, err := strconv.ParseUint(text, 10, 24); err == nil {
				return []uint64{n}
			}
		}
		return nil
	})
}

// findMounts looks at the mounts of all namespaces, of which shows tells the numbers of the contents.
func findMounts(ctx context.Context, medium metadata.Medium, shows func(*holders.Mount) []uint64) (map[mounted]holders.Holder, error) {
	found, err := holders.FindMounts(ctx, func(m *holders.Mount) bool { return len(shows(m)) > 0 })
	if err != nil {
		return nil, err
	}
	all := map[mounted]holders.Holder{}
	for _, m := range found.List {
		for _, n := range shows(&m) {
			all[mounted{m.Namespace, m.MountPoint, medium, n}] = m.Holder()
		}
	}
	return all, nil
}
