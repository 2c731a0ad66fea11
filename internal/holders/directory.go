package holders

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// ErrUnseen is returned when it cannot be told here who uses a directory: there is no /proc, or the process has changed its
// root, so that mountinfo does not show it the mount that the directory lies on.
var ErrUnseen = errors.New("who uses it cannot be told")

// A Directory is a directory as mounts name it.
type Directory struct {
	paths        []string // as it was given, and without symbolic links
	major, minor uint32   // of its file system, as mountinfo has them
	root         string   // its path in the file system
	namespace    uint64   // ours
}

// Locate finds out where a directory lies, or returns ErrUnseen.
func Locate(dir string) (Directory, error) {
	given, err := filepath.Abs(dir)
	if err != nil {
		return Directory{}, err
	}
	real, err := filepath.EvalSymlinks(given)
	if err != nil {
		return Directory{}, err
	}
	d := Directory{paths: []string{given, real}}
	if _, err := os.Stat(procRoot + "/self/mountinfo"); err != nil {
		return Directory{}, fmt.Errorf("%w: %w", ErrUnseen, err)
	}
	id, err := mountID(real)
	if err != nil {
		return Directory{}, err
	}
	own, err := os.Open(procRoot + "/self/mountinfo")
	if err != nil {
		return Directory{}, err
	}
	defer own.Close() //nolint:errcheck // nothing was written through it
	mounts, err := parseMounts(own, func(m *Mount) bool { return m.ID == id })
	if err != nil {
		return Directory{}, err
	}
	if len(mounts) == 0 {
		return Directory{}, fmt.Errorf("%w: the mount that %s lies on is not in /proc/self/mountinfo", ErrUnseen, dir)
	}
	d.major, d.minor = mounts[0].Major, mounts[0].Minor
	d.root = filepath.Join(mounts[0].Root, strings.TrimPrefix(real, strings.TrimSuffix(mounts[0].MountPoint, "/")))
	d.namespace, err = mountNamespace(os.Getpid())
	return d, err
}

// mountID returns the number of the mount that a directory is seen through.
func mountID(dir string) (int, error) {
	f, err := os.Open(dir)
	if err != nil {
		return 0, err
	}
	defer f.Close() //nolint:errcheck // nothing was written through it
	info, err := os.ReadFile(fmt.Sprintf("%s/self/fdinfo/%d", procRoot, f.Fd()))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(info)) {
		if value, found := strings.CutPrefix(line, "mnt_id:"); found {
			return strconv.Atoi(strings.TrimSpace(value))
		}
	}
	return 0, fmt.Errorf("%w: this kernel does not tell the mount of an open file (Linux 3.15)", ErrUnseen)
}

// Uses returns what below the directory a mount needs, as paths relative to it: the layers of an overlay or an aufs, what is
// mounted by a bind mount, and the mount point itself. Only a mount point in our own namespace counts; elsewhere a path may mean
// another directory.
//
// containerd mounts an overlay of many layers from within their common directory, with relative names in lowerdir=, and the
// kernel does not keep what they were relative to. Such a name counts, unless the writable layer, whose name is never
// relative, lies elsewhere. So a view of some other snapshotter's may be taken for ours, and never the other way round.
//
// So it is with lower directories that have a map of ids: containerd mounts their common directory in a temporary place, from
// which it mounts the overlay, and which is gone then.
func (d Directory) Uses(m *Mount) (uses []string) { return d.uses(m, false) }

// UsesSurely returns the same without what may be another directory's: relative names count only if the writable layer lies
// in the directory.
func (d Directory) UsesSurely(m *Mount) (uses []string) { return d.uses(m, true) }

func (d Directory) uses(m *Mount, surely bool) (uses []string) {
	if m.Major == d.major && m.Minor == d.minor {
		if rel, ok := below(d.root, strings.TrimSuffix(m.Root, "//deleted")); ok {
			uses = append(uses, rel)
		}
	}
	if m.Namespace == d.namespace {
		if rel, ok := d.rel(m.MountPoint); ok {
			uses = append(uses, rel)
		}
	}
	if m.FSType == "overlay" {
		uses = append(uses, d.layers(m.Options, surely)...)
	}
	for _, branch := range m.Branches {
		if rel, ok := d.rel(branch); ok {
			uses = append(uses, rel)
		}
	}
	return uses
}

// layers returns the layers of an overlay with these options that are below the directory.
func (d Directory) layers(options string, surely bool) (uses []string) {
	var relative []string
	here, elsewhere := false, false
	for option := range strings.SplitSeq(options, ",") {
		key, value, _ := strings.Cut(option, "=")
		switch key {
		case "upperdir", "workdir":
			rel, ok := d.rel(unescape([]byte(value)))
			if ok {
				uses = append(uses, rel)
			}
			here = here || ok
			elsewhere = elsewhere || !ok && filepath.IsAbs(value)
		case "lowerdir", "lowerdir+", "datadir+":
			for layer := range strings.SplitSeq(unescape([]byte(value)), ":") {
				if rel, ok := d.rel(layer); ok {
					uses = append(uses, rel)
				} else if rel, ok := unplaced(layer); ok {
					relative = append(relative, rel)
				}
			}
		}
	}
	if !elsewhere && (here || !surely) {
		uses = append(uses, relative...)
	}
	return uses
}

// unplaced returns what a lower directory is called within its common directory, if that is not told: a relative name, or one in
// containerd's place for mounts with a map (doPrepareIDMappedOverlay in core/mount/mount_linux.go).
func unplaced(layer string) (rel string, ok bool) {
	if !filepath.IsAbs(layer) {
		rel = filepath.Clean(layer)
		return rel, layer != "" && filepath.IsLocal(rel) // another's may lead out of its directory
	}
	_, rel, ok = strings.Cut(layer, "/ovl-idmapped") // and a number
	if !ok {
		return "", false
	}
	_, rel, ok = strings.Cut(rel, "/")
	rel = filepath.Clean(rel)
	return rel, ok && filepath.IsLocal(rel)
}

func (d Directory) rel(path string) (string, bool) {
	for _, dir := range d.paths {
		if rel, ok := below(dir, path); ok {
			return rel, true
		}
	}
	return "", false
}

// below returns the path relative to dir of what is below it.
func below(dir, path string) (rel string, ok bool) {
	rel, ok = strings.CutPrefix(filepath.Clean(path), strings.TrimSuffix(dir, "/")+"/")
	return rel, ok && filepath.IsAbs(path)
}

// OfDirectory returns who uses a directory or what is below it: mounts, in any namespace; loop devices on files in it; and
// the processes that have something of it open, if they call it as we do.
func OfDirectory(ctx context.Context, dir string) ([]Holder, error) {
	dir = filepath.Clean(dir)
	top, err := Locate(filepath.Dir(dir))
	if err != nil {
		return nil, err
	}
	inside := func(rel string) bool {
		name, _, _ := strings.Cut(rel, "/")
		return name == filepath.Base(dir)
	}
	found, err := loopsIn(dir)
	if err != nil {
		return nil, err
	}
	mounts, err := FindMounts(ctx, func(m *Mount) bool { return slices.ContainsFunc(top.Uses(m), inside) })
	if err != nil {
		return nil, err
	}
	for _, m := range mounts.List {
		found = append(found, m.Holder())
	}
	err = openFiles(ctx, func(pid int, _, name string) {
		if rel, ok := top.rel(name); ok && inside(rel) && pid != os.Getpid() {
			found = append(found, Holder{PID: pid, Command: command(pid), File: name})
		}
	})
	return found, err
}

// loopsIn returns the loop devices on files below a directory.
func loopsIn(dir string) (found []Holder, err error) {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) || isGone(err) {
			continue // it has just been detached
		}
		if err != nil {
			return nil, err
		}
		if _, ok := below(dir, strings.TrimSpace(string(text))); ok {
			found = append(found, Holder{Loop: strings.Split(file, "/")[3]})
		}
	}
	return found, nil
}
