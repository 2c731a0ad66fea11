package overlayaufs

import (
	"errors"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// unions are the overlays of the layers of a tree that Changes needs for what the topmost layer does not say by itself, made when they are
// first needed. They are read-only, the layer that a container writes to one of those below, so that they change nothing of it.
//
// Each is mounted on a thread with mounts of its own and is only held by a descriptor: nobody sees it, and it ends with this
// process at the latest.
type unions struct {
	b *Backend
	shown
	top int // the topmost layer

	whole *os.File // all layers
	below *os.File // those below the topmost
}

func (u *unions) close() (err error) {
	for _, f := range []*os.File{u.whole, u.below} {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	return err
}

// nothingBelow reports whether there are no layers below.
func (u *unions) nothingBelow() bool { return len(u.chain) == 1 }

// isNothing reports whether the layers below have no directory of this path. overlayfs marks each new directory as opaque, if it
// can (ovl_create_upper in fs/overlayfs/dir.c), and few of them hide anything.
func (u *unions) isNothing(where string) (bool, error) {
	if u.driver != driverOverlay {
		return false, nil
	}
	if u.below == nil {
		var err error
		if u.below, err = u.b.openUnion(u.layers()[1:], -1); err != nil {
			return false, err
		}
	}
	fd, err := openIn(int(u.below.Fd()), where)
	if isGone(err) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	return false, unix.Close(fd)
}

// directory calls fn with the directory where of the whole.
func (u *unions) directory(where string, fn func(dir int) error) (err error) {
	if u.whole == nil {
		if u.whole, err = u.b.openUnion(u.layers(), u.mappedTop()); err != nil {
			return err
		}
	}
	fd, err := openIn(int(u.whole.Fd()), where)
	if err != nil {
		return &os.PathError{Op: "open united", Path: "/" + where, Err: moved(err)}
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	return fn(fd)
}

// file calls fn with what the file name in the directory where is to a container, and a descriptor of that directory.
func (u *unions) file(where, name string, dev uint64, fn func(st *unix.Stat_t, dir int) error) error {
	return u.directory(where, func(dir int) error {
		var st unix.Stat_t
		if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return &os.PathError{Op: "stat united", Path: "/" + where + name, Err: moved(err)}
		}
		st.Dev = dev // the file system is the same, and so are its numbers
		return fn(&st, dir)
	})
}

// mappedTop returns the topmost layer if its ids are mapped, or -1.
func (u *unions) mappedTop() int {
	if u.ids == nil {
		return -1
	}
	return u.top
}

// openIn opens a directory below the directory root by a path of any length, and no symbolic link on the way.
func openIn(root int, where string) (int, error) {
	fd, err := openDir(root, ".")
	for part := range strings.SplitSeq(path.Clean(where), "/") {
		if err != nil {
			return -1, err
		}
		var next int
		next, err = openDir(fd, part)
		err = errors.Join(err, unix.Close(fd))
		fd = next
	}
	return fd, err
}

// openShown returns a descriptor of the directory of the topmost layer, with the ids of the container.
func (b *Backend) openShown(s shown) (fd int, err error) {
	name := dirName(s.chain[0])
	err = b.onRoot("open", func(root int) error {
		// A mount of its own has none of the mounts upon the layer, as the union has none.
		fd, err = unix.OpenTree(root, name, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
		if err == nil || s.ids != nil || errors.Is(err, unix.ENOENT) {
			return err
		}
		fd, err = openDir(root, name) // Linux 5.1 and before, or not allowed
		return err
	})
	if err != nil {
		return -1, err
	}
	if s.ids != nil {
		if err := mapBack(fd, s.ids); err != nil {
			return -1, errors.Join(err, unix.Close(fd))
		}
	}
	return fd, nil
}

// layers returns the names that Mounts has for the layers of the chain, from the root.
func (u *unions) layers() []string {
	chain := make([]Content, len(u.chain))
	for i, id := range u.chain {
		chain[i].ID = id
	}
	name, layers := u.b.lowerName(chain), make([]string, len(chain))
	for i, id := range u.chain {
		layers[i] = name(id)
	}
	return layers
}

// openUnion returns a directory in which the layers are seen united. Top takes the place of the first if it is not -1: a mount
// that is attached nowhere.
func (b *Backend) openUnion(layers []string, top int) (f *os.File, err error) {
	if len(layers) == 1 {
		return os.Open(filepath.Join(b.root, layers[0]))
	}
	if isoErr := isolated(func() { f, err = b.mountUnion(layers, top) }); isoErr != nil {
		err = isoErr
	}
	return f, err
}

// mountUnion is openUnion on a thread with mounts, and a working directory, of its own.
func (b *Backend) mountUnion(layers []string, top int) (*os.File, error) {
	if err := unix.Chdir(b.root); err != nil {
		return nil, &os.PathError{Op: "chdir", Path: b.root, Err: err}
	}
	if top >= 0 {
		if err := unix.MoveMount(top, "", unix.AT_FDCWD, emptyName, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return nil, &os.PathError{Op: "move_mount", Path: b.root, Err: err}
		}
		layers[0] = emptyName
	}
	m := b.overlay.readOnly(layers)[0]
	if i := slices.Index(m.Options, "index=on"); i >= 0 {
		m.Options[i] = "index=off" // else the kernel refuses a layer that is in use
	}
	if err := unix.Mount(m.Source, emptyName, m.Type, unix.MS_RDONLY, strings.Join(m.Options, ",")); err != nil {
		return nil, &os.PathError{Op: opMount, Path: b.root, Err: err}
	}
	f, err := os.OpenFile(emptyName, os.O_RDONLY|unix.O_DIRECTORY, 0)
	return f, errors.Join(err, unix.Unmount(emptyName, unix.MNT_DETACH))
}
