package holders

import (
	"context"
	"errors"
	"os"
)

// Holder returns the mount as a holder of what is mounted.
func (m Mount) Holder() Holder {
	h := Holder{Namespace: m.Namespace, MountPoint: m.MountPoint}
	if m.PID != os.Getpid() {
		h.PID, h.Command = m.PID, command(m.PID)
	}
	return h
}

// Mounts is what one look at all mount namespaces has found.
type Mounts struct {
	List   []Mount
	Hidden int // processes whose mounts may not be read, or cannot be understood
}

// A view is what a mountinfo file shows: the mounts of a namespace below a root directory. A process that has changed its
// root is not shown the others.
type view struct {
	namespace uint64
	root      string
}

// FindMounts returns the mounts of all mount namespaces that wanted returns true for. Each namespace is read once, our own
// through our own process, unless all processes in it have changed their roots. wanted must not keep its argument.
func FindMounts(ctx context.Context, wanted func(*Mount) bool) (Mounts, error) {
	f := finder{wanted: wanted, seen: map[view]bool{}, partial: map[view][]Mount{}, branches: map[string][]string{}}
	f.ask = func(options string) ([]string, error) { return branchesOf(ctx, sysAufs, options) }
	err := f.visit(os.Getpid())
	if err == nil {
		err = processes(ctx, f.visit)
	}
	for v, list := range f.partial {
		if !f.seen[view{v.namespace, "/"}] {
			f.found.List = append(f.found.List, list...)
		}
	}
	return f.found, errors.Join(err, f.branchErr)
}

// A finder collects the mounts that one process after the other shows.
type finder struct {
	wanted  func(*Mount) bool
	found   Mounts
	seen    map[view]bool
	partial map[view][]Mount // of processes that have changed their roots

	ask       func(options string) ([]string, error) // for the branches of an aufs
	branches  map[string][]string                    // what was answered: every namespace shows the same again
	branchErr error
}

// isWanted asks whoever wants mounts, and adds before what mountinfo does not tell of an aufs.
func (f *finder) isWanted(m *Mount) bool {
	if m.FSType == "aufs" {
		var known bool
		if m.Branches, known = f.branches[m.Options]; !known {
			var err error
			if m.Branches, err = f.ask(m.Options); err != nil && f.branchErr == nil {
				f.branchErr = err
			}
			f.branches[m.Options] = m.Branches
		}
	}
	return f.wanted(m)
}

func (f *finder) visit(pid int) error {
	ns, err := mountNamespace(pid)
	whole := view{ns, "/"}
	if err == nil && f.seen[whole] { // as of nearly every process: its root need not be asked for
		return nil
	}
	var (
		v    view
		list []Mount
	)
	if err == nil {
		v, err = viewOf(pid)
		whole = view{v.namespace, "/"}
	}
	if err == nil && (f.seen[whole] || f.seen[v]) {
		return nil
	}
	if err == nil {
		list, err = readMounts(pid, v, f.isWanted)
	}
	switch {
	case err == nil && v == whole:
		f.found.List = append(f.found.List, list...)
		f.seen[v] = true
	case err == nil:
		f.partial[v] = list
		f.seen[v] = true
	case isHidden(err), errors.Is(err, errMountInfo):
		f.found.Hidden++
	case !isGone(err):
		return err
	}
	return nil
}

// viewOf returns the view that a process has. The root that it is in is told as seen from the top of its namespace.
func viewOf(pid int) (view, error) {
	ns, err := mountNamespace(pid)
	if err != nil {
		return view{}, err
	}
	root, err := os.Readlink(proc(pid, "root"))
	return view{ns, root}, err
}

// readMounts reads the mounts of the view that a process had a moment ago. If it has another one now, or its number is
// another process's, that view may be gone.
func readMounts(pid int, v view, wanted func(*Mount) bool) ([]Mount, error) {
	f, err := os.Open(proc(pid, "mountinfo"))
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // nothing was written through it
	if now, err := viewOf(pid); err != nil || now != v {
		return nil, os.ErrNotExist
	}
	return parseMounts(f, func(m *Mount) bool {
		m.Namespace, m.PID = v.namespace, pid
		return wanted(m)
	})
}
