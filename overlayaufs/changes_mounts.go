package overlayaufs

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/lamina-snapshotter/lamina/internal/idmap"
)

// A shown is what mounts show: the contents of a chain, the topmost first. They are those of plan and planMapped, as a client
// hands them back: containerd's may have added options, or left some out.
type shown struct {
	chain    []uint64
	driver   string     // driverOverlay or driverAufs, or "" for a directory without marks: a bind mount
	writable bool       // chain[0] is what a union writes to
	options  []string   // of an overlay
	ids      *idmap.Map // by which chain[0] has the ids of a host
}

// errNotOurs is returned when mounts are not of the form that this place's have.
var errNotOurs = errors.New("they are none of its")

// parseMounts returns what mounts show. Each path must be that of a content, in the very spelling in which it is given out.
func (b *Backend) parseMounts(mounts []mount.Mount) (s shown, err error) {
	if len(mounts) == 0 {
		return shown{}, nil
	}
	for _, m := range mounts {
		if m.Type != mounts[0].Type || m.Target != "" {
			return shown{}, errNotOurs
		}
	}
	switch typ := mounts[0].Type; {
	case typ == "bind" && len(mounts) == 1:
		s.chain, err = b.parseLayers([]string{mounts[0].Source})
	case typ == driverOverlay && b.aufs == nil && len(mounts) == 1:
		return b.parseOverlay(mounts[0].Options)
	case typ == driverAufs && b.aufs != nil:
		return b.parseAufs(mounts)
	default:
		err = errNotOurs
	}
	return s, err
}

// parseOverlay reads the options of an overlay: one directory each, or one list of them.
func (b *Backend) parseOverlay(options []string) (s shown, err error) {
	s = shown{driver: driverOverlay, options: options}
	dirs, labels := map[string]string{}, map[string]string{}
	for _, o := range options {
		key, value, _ := strings.Cut(o, "=")
		switch key {
		case "lowerdir", "upperdir", "workdir":
			if _, twice := dirs[key]; twice {
				return shown{}, errNotOurs
			}
			dirs[key] = value
		case "lowerdir+", "datadir+":
			return shown{}, errNotOurs
		case "uidmap":
			labels[snapshots.LabelSnapshotUIDMapping] = value
		case "gidmap":
			labels[snapshots.LabelSnapshotGIDMapping] = value
		}
	}
	layers := strings.Split(dirs["lowerdir"], ":")
	var upper string
	if upper, s.writable = dirs["upperdir"]; s.writable {
		layers = slices.Insert(layers, 0, upper)
	}
	if s.chain, err = b.parseLayers(layers); err != nil {
		return shown{}, err
	}
	if !s.writable {
		return s, nil
	}
	if len(s.chain) == 0 || dirs["workdir"] != b.path(s.chain[0], workName) {
		return shown{}, errNotOurs
	}
	if s.ids, err = idmap.FromLabels(labels); err != nil {
		return shown{}, fmt.Errorf("no id map %.200q: %w", labels, errNotOurs) // and not of its class: what is not ours is not invalid
	}
	return s, nil
}

// parseAufs reads the branches that a first mount has, and those that the others append to it.
func (b *Backend) parseAufs(mounts []mount.Mount) (s shown, err error) {
	var branches []string
	for i, m := range mounts {
		for _, o := range m.Options {
			if list, ok := strings.CutPrefix(o, "br:"); ok && i == 0 && branches == nil {
				branches = strings.Split(list, ":")
			} else if branch, ok := strings.CutPrefix(o, "append:"); ok && i > 0 {
				branches = append(branches, branch)
			} else if ok {
				return shown{}, errNotOurs
			}
		}
	}
	s = shown{driver: driverAufs}
	for i, branch := range branches {
		dir, access, _ := strings.Cut(branch, "=")
		if access == "rw" && i == 0 {
			s.writable = true
		} else if access != "rr+wh" {
			return shown{}, errNotOurs
		}
		branches[i] = dir
	}
	s.chain, err = b.parseLayers(branches)
	return s, err
}

// parseLayers returns the contents whose directories these are. The empty tree is a directory too, and the last one.
func (b *Backend) parseLayers(dirs []string) (chain []uint64, err error) {
	for i, dir := range dirs {
		if dir == filepath.Join(b.root, emptyName) && i == len(dirs)-1 {
			break
		}
		id, err := b.parseLayer(dir)
		if err != nil {
			return nil, err
		}
		chain = append(chain, id)
	}
	return chain, nil
}

func (b *Backend) parseLayer(dir string) (id uint64, err error) {
	name, ok := strings.CutPrefix(dir, b.root+"/")
	if !ok {
		return 0, fmt.Errorf("%q: %w", dir, errNotOurs)
	}
	if id, ok := parseLink(name); ok {
		return id, nil
	}
	if name, ok = strings.CutSuffix(name, "/"+fsName); ok {
		id, ok = parseID(name)
	}
	if !ok {
		return 0, fmt.Errorf("%q: %w", dir, errNotOurs)
	}
	return id, nil
}
