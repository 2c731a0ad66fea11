package overlayaufs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/internal/failpoint"
	"github.com/lamina-snapshotter/lamina/internal/idmap"
	"github.com/lamina-snapshotter/lamina/internal/space"
	"github.com/lamina-snapshotter/lamina/overlayaufs/internal/quota"
)

const (
	workMode = 0o711

	// maxLower is how many layers overlayfs takes below the writable one (OVL_MAX_STACK in fs/overlayfs/params.h).
	maxLower = 500

	// maxID keeps the store from counting upwards from whatever number somebody gives a directory.
	maxID = 1 << 62
)

// Make creates the writable content c on top of a chain. The directory fs of a base is root's, with mode 0755; that
// of any other gets owner and mode of the one below, as it is the root directory of the mounted whole; with an id map in the
// labels, the owner that it maps that one to. The size is always 0: a directory has none of its own.
//
// What lies at its number is garbage that a crash left (rule 3 of the crash model), and is deleted first. It may be of another
// project, so it is deleted as a content of which nothing is known.
//
// With a project the content is in it, and gets the limits that the labels ask for. One that cannot be had is
// ErrFailedPrecondition if union.quota is "strict", and is else left out.
func (b *Backend) Make(ctx context.Context, c Content, chain []Content, labels map[string]string) (size uint64, err error) {
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("make %s: %w", b.path(c.ID), err)
	}
	below := len(chain)
	if isUnpack(labels) { // a layer is to be below a container
		below++
	}
	if err := b.checkDepth(below, true); err != nil {
		return 0, err
	}
	if len(chain) == 0 && labels[labelParentChainID] != "" {
		if err := b.checkRebase(); err != nil {
			return 0, err
		}
	}
	ids, err := idmap.FromLabels(labels)
	if err == nil {
		err = b.checkLoose(len(chain), labels, ids)
	}
	if err != nil {
		return 0, err
	}
	limits, err := b.limitsFor(ctx, c, labels)
	if err != nil {
		return 0, fmt.Errorf("make %s: %w", b.path(c.ID), err)
	}
	if len(chain) == 0 {
		ids = nil // it is in a bind mount, and that is mapped itself
	}
	if err = b.make(ctx, c, chain, ids, limits); err == nil && ids == nil {
		b.fresh.Store(c.ID, nil)
	}
	return 0, space.Explain(err, b.root)
}

// make creates a content, of a spare if there is one; one that is to be in a project is made in it.
//
// The directory is put into its project while it is empty, so that all that will be in it is in the project too: what is moved
// from work to fs must be. A cut after that leaves garbage in the project, and perhaps limits of it, which go with the garbage.
// They are set after the directory is made, and so never stay without it: the journal has them in this order.
//
// Nothing is synced. A power cut after any step leaves a directory id that List returns and Delete removes, and since fs
// gets its name last, there is no fs with a wrong owner or mode: a content that has fs is complete.
//
// Nor does the commit of the store's record make the steps durable, on any file system: it is an fdatasync(2) of a file that
// mostly is as long as it was, and then commits no journal (ext4_fsync_journal in fs/ext4/fsync.c, xfs_file_fsync in
// fs/xfs/xfs_file.c). So a power cut may leave a record of an active snapshot without its directory, and on btrfs without
// work alone; Mounts makes that again, empty. Nothing that was synced is lost so: on ext4 and xfs the fsync of a file made in
// fs takes the steps before with it, on btrfs the directories above the file.
func (b *Backend) make(ctx context.Context, c Content, chain []Content, ids *idmap.Map, limits quota.Limits) error {
	root := baseRoot()
	if len(chain) > 0 {
		var err error
		if root, err = readRootDir(b.path(chain[0].ID, fsName)); err != nil {
			return fmt.Errorf("make %s: parent: %w", b.path(c.ID), err)
		}
	}
	if ids != nil {
		var err error
		if root, err = root.mapped(ids); err != nil {
			return fmt.Errorf("make %s: parent: %w", b.path(c.ID), err)
		}
	}
	mark := func(dir string) error {
		switch {
		case ids != nil:
			return markIDs(dir, ids)
		case len(chain) == 0: // Rebase looks at when a base was made
			now := []unix.Timespec{{Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_NOW}}
			return unix.UtimesNanoAt(unix.AT_FDCWD, dir, now, 0)
		}
		return nil
	}
	if c.Project == 0 {
		b.claimed.Delete(c.ID)
		if b.useSpare(ctx, c.ID, root, mark) {
			return nil
		}
	}
	if err := b.Delete(ctx, Content{ID: c.ID}); err != nil {
		return err
	}
	return b.makeAnew(c, root, limits, mark)
}

// makeAnew creates a content where nothing is.
func (b *Backend) makeAnew(c Content, root rootDir, limits quota.Limits, mark func(dir string) error) error {
	dir := b.path(c.ID)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	failpoint.Hit("union.made-directory")
	if err := b.join(c, limits); err != nil {
		return err
	}
	if err := os.Mkdir(b.path(c.ID, workName), workMode); err != nil {
		return err
	}
	if err := mark(dir); err != nil {
		return err
	}
	if err := root.create(b.path(c.ID, newName)); err != nil {
		return err
	}
	failpoint.Hit("union.made-root")
	return os.Rename(b.path(c.ID, newName), b.path(c.ID, fsName))
}

// rootDir is what a layer's root directory has of its own.
type rootDir struct {
	uid, gid int
	mode     uint32 // permissions with the set-user-id, set-group-id and sticky bits, as chmod(2) takes them
}

// baseRoot is that of a base.
func baseRoot() rootDir { return rootDir{uid: os.Geteuid(), gid: os.Getegid(), mode: baseMode} }

func readRootDir(path string) (rootDir, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return rootDir{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return rootDir{uid: int(st.Uid), gid: int(st.Gid), mode: st.Mode & 0o7777}, nil
}

// create makes the directory, its mode apart from mkdir, which obeys the umask.
func (r rootDir) create(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	return rootDir{uid: os.Geteuid(), gid: os.Getegid()}.become(r, path)
}

// become gives what want has to a directory that has r. The mode comes after the owner, because a change of owner may clear its
// special bits.
func (r rootDir) become(want rootDir, path string) error {
	if r.uid != want.uid || r.gid != want.gid {
		if err := os.Lchown(path, want.uid, want.gid); err != nil {
			return err
		}
	} else if r.mode == want.mode {
		return nil
	}
	if err := unix.Chmod(path, want.mode); err != nil {
		return &os.PathError{Op: "chmod", Path: path, Err: err}
	}
	return nil
}

// Delete removes content c. It is idempotent and takes a part of a content too: the directory itself goes last, so
// that what an error, a crash or the end of ctx leaves is still in List. It follows no symbolic link, and a directory
// with something mounted on it is an error with errno EBUSY: what is mounted is never touched.
//
// The limits of its project are lifted first: a crash then leaves the directory, from which the project can be told, and never
// limits of a project that has nothing in it. At return the project is empty.
func (b *Backend) Delete(ctx context.Context, c Content) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("delete %s: %w", b.path(c.ID), err)
	}
	b.claimed.Delete(c.ID)
	b.fresh.Delete(c.ID)
	project, err := b.release(c)
	if err == nil {
		err = b.onRoot("delete", func(fd int) error {
			if err := removeLink(fd, c.ID); err != nil {
				return err
			}
			failpoint.Hit("union.unlinked")
			return removeTree(ctx, fd, strconv.FormatUint(c.ID, 10))
		})
	}
	if err == nil {
		err = b.settle(project)
	}
	if err != nil {
		return fmt.Errorf("delete in %s: %w", b.root, err)
	}
	return nil
}

// List returns the numbers of all contents, whole or partial.
func (b *Backend) List(ctx context.Context) ([]uint64, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("list %s: %w", b.root, err)
	}
	entries, err := os.ReadDir(b.root)
	if err != nil {
		return nil, err
	}
	var ids []uint64
	for _, e := range entries {
		if id, ok := parseID(e.Name()); ok && e.IsDir() {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// parseID returns the number that a directory of ours has for a name. Another spelling of a number, as "007", is none.
func parseID(name string) (uint64, bool) {
	id, err := strconv.ParseUint(name, 10, 64)
	return id, err == nil && strconv.FormatUint(id, 10) == name && id > 0 && id < maxID
}

// removeTree removes the directory name in the directory top with all that is in it, or a file of that name.
func removeTree(ctx context.Context, top int, name string) error {
	err := walkTree(ctx, top, name, remover{})
	if !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP) {
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return err
	}
	if err := unix.Unlinkat(top, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "remove", Path: name, Err: err}
	}
	return nil
}

// A remover removes what a walk comes by. It stops at the first error.
type remover struct{}

func (remover) dir(*unix.Stat_t) {}

func (remover) op() string { return "remove" }

func (remover) entry(fd int, name string, typ uint8) (descend bool, err error) {
	if typ == unix.DT_DIR {
		return true, nil
	}
	failpoint.Hit("union.delete-entry")
	switch err := unix.Unlinkat(fd, name, 0); {
	case errors.Is(err, unix.EISDIR):
		return true, nil // the file system did not say
	case errors.Is(err, unix.ENOENT):
		return false, nil
	default:
		return false, err
	}
}

func (remover) mountPoint() error { return unix.EBUSY }

func (remover) leave(parent int, name string) error {
	failpoint.Hit("union.delete-directory")
	err := unix.Unlinkat(parent, name, unix.AT_REMOVEDIR)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}
