package doctor

import (
	"context"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/moby/sys/mountinfo"

	"github.com/lamina-snapshotter/lamina/metadata"
	"github.com/lamina-snapshotter/lamina/overlayaufs"
)

// A mounted is a content that a mount shows.
type mounted struct {
	at     string
	medium metadata.Medium
	number uint64
}

// mounts reports mounts of contents that no record names, in this mount namespace. One that is being unmounted while its
// snapshot is removed is looked at again.
func (e *examination) mounts(ctx context.Context) error {
	before, err := e.mountsOfContents()
	if err != nil || len(before) == 0 {
		return err
	}
	now, err := e.again(ctx)
	if err != nil {
		return err
	}
	stale := keep(before, func(m mounted) bool { return !now.has(m) })
	if e.Live != nil && len(stale) > 0 {
		after, err := e.mountsOfContents()
		if err != nil {
			return err
		}
		still := map[mounted]bool{}
		for _, m := range after {
			still[m] = true
		}
		if now, err = readContents(ctx, e.Store); err != nil {
			return err
		}
		stale = keep(stale, func(m mounted) bool { return still[m] && !now.has(m) })
	}
	said := map[string]bool{}
	for _, m := range stale {
		if !said[m.at] { // one line a mount, however many layers of it are gone
			e.found(finding(MountStale, m.at, "it shows the %s %d, which has no record", m.medium, m.number))
		}
		said[m.at] = true
	}
	return nil
}

func (c contents) has(m mounted) bool {
	records := c.directories
	if m.medium == metadata.Volume {
		records = c.volumes
	}
	link, ok := records[m.number]
	return ok && link.Kind != snapshots.KindUnknown
}

// mountsOfContents returns which mounts show which contents: bind mounts and overlays of directories, and file systems on
// volumes.
func (e *examination) mountsOfContents() (all []mounted, err error) {
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, err
	}
	roots := rootsOf(mounts, e.UnionRoot)
	volumes := "/dev/mapper/lamina-" + e.Store.UUID()[:8] + "-"
	for _, m := range mounts {
		for _, id := range e.directoriesOf(m, roots) {
			all = append(all, mounted{m.Mountpoint, metadata.Directory, id})
		}
		if text, ok := strings.CutPrefix(m.Source, volumes); ok {
			if n, err := strconv.ParseUint(text, 10, 24); err == nil {
				all = append(all, mounted{m.Mountpoint, metadata.Volume, n})
			}
		}
	}
	return all, nil
}

// A fsRoot is how a bind mount of something in the union root shows: a path inside a file system.
type fsRoot struct {
	major, minor int
	path         string
}

// rootsOf returns where the union root lies in its file system, by the mount that it is in.
func rootsOf(mounts []*mountinfo.Info, root string) (r fsRoot) {
	longest := -1
	for _, m := range mounts {
		rel, err := filepath.Rel(m.Mountpoint, root)
		if err != nil || rel == ".." || strings.HasPrefix(rel, "../") || len(m.Mountpoint) < longest {
			continue
		}
		longest = len(m.Mountpoint) // a later mount at the same place lies on top
		r = fsRoot{m.Major, m.Minor, filepath.Join(m.Root, rel)}
	}
	return r
}

// directoriesOf returns the contents of the union backend that a mount shows.
func (e *examination) directoriesOf(m *mountinfo.Info, root fsRoot) (ids []uint64) {
	if m.FSType != "overlay" {
		if m.Major == root.major && m.Minor == root.minor && root.path != "" {
			if id, ok := overlayaufs.InContent(root.path, strings.TrimSuffix(m.Root, "//deleted")); ok {
				ids = append(ids, id)
			}
		}
		return ids
	}
	for option := range strings.SplitSeq(m.VFSOptions, ",") {
		name, value, _ := strings.Cut(option, "=")
		switch name {
		case "lowerdir", "upperdir", "lowerdir+", "datadir+":
			for dir := range strings.SplitSeq(value, ":") {
				if id, ok := overlayaufs.InContent(e.UnionRoot, dir); ok {
					ids = append(ids, id)
				}
			}
		}
	}
	return ids
}
