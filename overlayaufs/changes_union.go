package overlayaufs

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// A union is the overlay of the layers of a tree, which Changes needs for what the topmost layer does not say by itself. It is made
// when it is first needed, and read-only, the layer that a container writes to one of those below, so that it changes nothing of it.
//
// It is mounted on a thread with mounts of its own and then held by a descriptor alone: nobody sees it, and it ends with this
// process at the latest.
type union struct {
	b *Backend
	shown
	top int // descriptor of the topmost layer
	dir *os.File
}

func (u *union) close() error {
	if u.dir == nil {
		return nil
	}
	return u.dir.Close()
}

// isAlone reports whether there are no layers below the topmost.
func (u *union) isAlone() bool { return len(u.chain) == 1 }

// directory calls fn with the directory where of the whole.
func (u *union) directory(where string, fn func(dir int) error) (err error) {
	if u.dir == nil {
		if isoErr := isolated(func() { u.dir, err = u.mount() }); isoErr != nil || err != nil {
			return errors.Join(isoErr, err)
		}
	}
	fd, err := openIn(int(u.dir.Fd()), where)
	if err != nil {
		return &os.PathError{Op: "open united", Path: "/" + where, Err: united(err)}
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	return fn(fd)
}

// file calls fn with what the file name in the directory where is to a container, and a descriptor of that directory.
func (u *union) file(where, name string, dev uint64, fn func(st *unix.Stat_t, dir int) error) error {
	return u.directory(where, func(dir int) error {
		var st unix.Stat_t
		if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return &os.PathError{Op: "stat united", Path: "/" + where + name, Err: united(err)}
		}
		st.Dev = dev // the file system is the same, and so are its numbers
		return fn(&st, dir)
	})
}

// united returns what an error of the union means.
func united(err error) error {
	if errors.Is(err, unix.EPERM) { // the kernel's answer to a mark that its options forbid to follow (fs/overlayfs/namei.c)
		return fmt.Errorf("%w: it is marked as renamed (redirect), or as without its content (metacopy), and the union root is not mounted "+
			"with that; a container cannot read it either: %w", err, errdefs.ErrFailedPrecondition)
	}
	return moved(err)
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
	if errors.Is(err, unix.ENOENT) {
		err = fmt.Errorf("%s: the snapshot was removed: %w", b.path(s.chain[0], fsName), errdefs.ErrNotFound)
	}
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
func (u *union) layers() []string {
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

// mount returns the root of the union. It is called on a thread with mounts, and a working directory, of its own.
func (u *union) mount() (*os.File, error) {
	if err := unix.Chdir(u.b.root); err != nil {
		return nil, &os.PathError{Op: "chdir", Path: u.b.root, Err: err}
	}
	layers := u.layers()
	if len(layers) > maxLower {
		return nil, fmt.Errorf("%d layers, where overlayfs stacks %d: what was renamed or copied up in part is not to be had: %w",
			len(layers), maxLower, errdefs.ErrNotImplemented)
	}
	if u.ids != nil { // the others have the ids of the container as they are
		if err := unix.MoveMount(u.top, "", unix.AT_FDCWD, emptyName, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return nil, &os.PathError{Op: "move_mount", Path: u.b.root, Err: err}
		}
		layers[0] = emptyName
	}
	m := u.b.overlay.readOnly(layers)[0]
	if i := slices.Index(m.Options, "index=on"); i >= 0 {
		m.Options[i] = "index=off" // else the kernel refuses a layer that is in use
	}
	if err := unix.Mount(m.Source, emptyName, m.Type, unix.MS_RDONLY, strings.Join(m.Options, ",")); err != nil {
		return nil, &os.PathError{Op: opMount, Path: u.b.root, Err: err}
	}
	f, err := os.OpenFile(emptyName, os.O_RDONLY|unix.O_DIRECTORY, 0)
	return f, errors.Join(err, unix.Unmount(emptyName, unix.MNT_DETACH))
}
