package overlayaufs

import (
	"context"
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// windowSize is how many directories of one path a walk holds open. A container may make a tree so deep that a
// descriptor for each level would take all that the process may have.
const windowSize = 64

// A visitor is told what a walk comes by. An error it returns ends the walk; the walk adds the path.
type visitor interface {
	// dir is called for each directory before its entries, the top one included.
	dir(st *unix.Stat_t)

	// entry is called for each entry of the directory fd, with its type as getdents tells it (unix.DT_*). The walk goes
	// into the entry if it returns true.
	entry(fd int, name string, typ uint8) (descend bool, err error)

	// mountPoint is called for a directory with something mounted on it, which the walk does not enter.
	mountPoint() error

	// leave is called for each directory after its entries, the top one included; parent is the directory it is in.
	leave(parent int, name string) error
}

// A namer is a visitor that says what it does when it leaves a directory, for errors.
type namer interface{ op() string }

// A walk goes through a tree, each directory before what is in it. It uses descriptors and single names only: no path
// gets too long, no symbolic link is followed, and a directory moved away meanwhile does not lead it elsewhere. It
// keeps its own stack, so depth costs memory, but neither goroutine stack nor descriptors.
//
// What vanishes meanwhile is passed over.
type walk struct {
	visitor
	top   int     // descriptor of the directory that holds the first frame's
	stack []frame // open are those at its end, at most windowSize
	buf   []byte  // for getdents
}

// A frame is a directory that the walk is in.
type frame struct {
	name     string
	fd       int // -1 if closed to keep within the window
	dev, ino uint64
	subdirs  []string // still to be entered
}

// walkTree walks the directory name, which may be a path, in the directory top. It returns an error with errno ENOENT or
// ENOTDIR if there is none.
func walkTree(ctx context.Context, top int, name string, v visitor) error {
	return newWalk(top, v).run(ctx, name)
}

func newWalk(top int, v visitor) *walk {
	return &walk{visitor: v, top: top, buf: make([]byte, 64<<10)}
}

// run is walkTree for a visitor that looks at the walk.
func (w *walk) run(ctx context.Context, name string) error {
	defer func() { w.cut(0) }()
	if err := w.enter(ctx, name); err != nil {
		return err
	}
	for len(w.stack) > 0 {
		if err := w.step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// step enters the next directory in the last frame's, or leaves that if there is none.
func (w *walk) step(ctx context.Context) error {
	if err := w.reopen(); err != nil || len(w.stack) == 0 {
		return err
	}
	last := &w.stack[len(w.stack)-1]
	n := len(last.subdirs)
	if n == 0 {
		return w.pop()
	}
	name := last.subdirs[n-1]
	last.subdirs = last.subdirs[:n-1]
	if err := w.enter(ctx, name); !isGone(err) { // since it was listed
		return err
	}
	return nil
}

// isGone reports whether err says that there is no directory of the name: none at all, a file, or a symbolic link.
func isGone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

// enter pushes the directory name in the last frame's and hands its entries to the visitor.
func (w *walk) enter(ctx context.Context, name string) error {
	fd, err := openDir(w.last(), name)
	if errors.Is(err, unix.EXDEV) {
		return w.wrap("open", name, w.mountPoint())
	}
	if err != nil {
		return w.wrap("open", name, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return errors.Join(w.wrap("stat", name, err), unix.Close(fd))
	}
	w.push(frame{name: name, fd: fd, dev: st.Dev, ino: st.Ino})
	w.dir(&st)
	return w.list(ctx, &w.stack[len(w.stack)-1])
}

// list hands the entries of a frame's directory to the visitor and notes those to be entered.
func (w *walk) list(ctx context.Context, f *frame) error {
	for {
		if err := ctx.Err(); err != nil {
			return w.wrap("walk", "", err)
		}
		n, err := unix.ReadDirent(f.fd, w.buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.ENOENT) { // the directory itself was removed
			return nil
		}
		if err != nil {
			return w.wrap("getdents", "", err)
		}
		if n <= 0 {
			return nil
		}
		for e, rest := nextDirent(w.buf[:n]); e.name != ""; e, rest = nextDirent(rest) {
			descend, err := w.entry(f.fd, e.name, e.typ)
			if err != nil {
				return w.wrap("walk", e.name, err)
			}
			if descend {
				f.subdirs = append(f.subdirs, e.name)
			}
		}
	}
}

// push adds a frame and closes the one that falls out of the window.
func (w *walk) push(f frame) {
	w.stack = append(w.stack, f)
	if i := len(w.stack) - 1 - windowSize; i >= 0 {
		w.stack[i].close()
	}
}

// pop leaves the last frame.
func (w *walk) pop() error {
	depth := len(w.stack) - 1
	name := w.stack[depth].name
	w.cut(depth)
	if err := w.reopen(); err != nil || len(w.stack) < depth {
		return err
	}
	op := "leave"
	if v, ok := w.visitor.(namer); ok {
		op = v.op()
	}
	return w.wrap(op, name, w.leave(w.last(), name))
}

// path returns the names of the directories that the walk is in, the top one included.
func (w *walk) path() []string {
	names := make([]string, len(w.stack))
	for i, f := range w.stack {
		names[i] = f.name
	}
	return names
}

// cut drops the frames from depth on.
func (w *walk) cut(depth int) {
	for i := range w.stack[depth:] {
		w.stack[depth+i].close()
	}
	w.stack = w.stack[:depth]
}

// reopen makes sure that the last frame is open, and with it a whole window, so that a tree of depth d costs
// d*d/windowSize openings. It goes down again from the top by the names, as ".." would lead elsewhere if a directory was
// moved. The frames from the first that is not where it was are dropped.
func (w *walk) reopen() error {
	depth := len(w.stack)
	if depth == 0 || w.stack[depth-1].fd >= 0 {
		return nil
	}
	parent := w.top // all frames are closed now
	for k := range depth {
		f := &w.stack[k]
		fd, err := openDir(parent, f.name)
		if isGone(err) || errors.Is(err, unix.EXDEV) {
			w.cut(k)
			return nil
		}
		if err != nil {
			return w.wrap("open again", "", err)
		}
		f.fd = fd
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return w.wrap("stat", "", err)
		}
		if st.Dev != f.dev || st.Ino != f.ino {
			w.cut(k)
			return nil
		}
		parent = fd
		if k >= windowSize {
			w.stack[k-windowSize].close()
		}
	}
	return nil
}

// last returns the descriptor of the directory that the walk is in.
func (w *walk) last() int {
	if len(w.stack) == 0 {
		return w.top
	}
	return w.stack[len(w.stack)-1].fd
}

func (f *frame) close() {
	if f.fd >= 0 {
		unix.Close(f.fd) //nolint:errcheck // nothing was written through it
		f.fd = -1
	}
}

// wrap adds the operation and the path below the top to an error.
func (w *walk) wrap(op, name string, err error) error {
	if err == nil {
		return nil
	}
	names := w.path()
	if name != "" {
		names = append(names, name)
	}
	return &os.PathError{Op: op, Path: strings.Join(names, "/"), Err: err}
}

// openDir opens the directory name in the directory parent. It fails with EXDEV if something is mounted there, with
// ENOTDIR or ELOOP if it is no directory.
//
// RESOLVE_NO_XDEV (Linux 5.6) sees every mount, also a bind mount of the same file system; and it does not take a btrfs
// subvolume for one, which is part of the layer. Without it the device number has to do.
func openDir(parent int, name string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	how := unix.OpenHow{Flags: flags, Resolve: unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS}
	fd, err := retry(func() (int, error) { return unix.Openat2(parent, name, &how) })
	if !errors.Is(err, unix.ENOSYS) {
		return fd, err
	}
	fd, err = retry(func() (int, error) { return unix.Openat(parent, name, flags, 0) })
	if err != nil {
		return -1, err
	}
	var in, out unix.Stat_t
	err = errors.Join(unix.Fstat(fd, &in), unix.Fstat(parent, &out))
	if err == nil && in.Dev != out.Dev {
		err = unix.EXDEV
	}
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// retry repeats an opening that a signal interrupted.
func retry(open func() (int, error)) (int, error) {
	for {
		fd, err := open()
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}
