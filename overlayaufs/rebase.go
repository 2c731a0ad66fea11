package overlayaufs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	cfs "github.com/containerd/continuity/fs"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/internal/failpoint"
	"github.com/lamina-snapshotter/lamina/internal/space"
)

// baseMode is the mode of a directory that nobody has described: the root of a base, and one that containerd makes because a
// layer has a file in it and no entry for it.
const baseMode = 0o755

// Rebase makes content c, which was made as a base with these labels, the layer that it would be had it been made on the chain
// below. If that is empty, c stays a base, and deletions that it may have, which delete nothing, go: a base that is unpacked
// as such has none.
//
// What Make would have taken from the layer below is taken now: owner and mode of the root directory, unless somebody has set
// them. What containerd's applier would have taken (mkparent in pkg/archive/tar.go), had it been told the layers below, is taken
// as well: owner, mode and attributes of the directories for which the layer has no entry.
//
// It is called before Freeze, which makes all of that durable. A power cut or a kill -9 after any step leaves an active snapshot
// of which some directories are changed; doing it again changes the others, and these to what they are.
func (b *Backend) Rebase(ctx context.Context, c Content, below []Content, labels map[string]string) error {
	err := b.rebase(ctx, c, below, labels)
	if err != nil {
		return fmt.Errorf("rebase %s: %w", b.path(c.ID), space.Explain(err, b.root))
	}
	return nil
}

func (b *Backend) rebase(ctx context.Context, c Content, below []Content, labels map[string]string) error {
	if len(below) == 0 {
		if !b.isLoose(labels) {
			return nil
		}
		return b.walkLayer(ctx, c.ID, cleaner{})
	}
	if isUnpack(labels) {
		if err := errors.Join(b.checkRebase(), b.checkDepth(len(below)+1, true)); err != nil {
			return err
		}
	}
	if err := b.adoptRoot(c.ID, below[0].ID); err != nil {
		return err
	}
	failpoint.Hit("union.rebased-root")
	if !b.isLoose(labels) {
		return nil
	}
	// Make's last step, or told by it: nothing that was made in the layer is older.
	made, err := os.Lstat(b.path(c.ID))
	if err != nil {
		return err
	}
	m := mender{made: made.ModTime(), began: time.Now()}
	if m.root, err = os.Open(b.path(c.ID, fsName)); err != nil {
		return err
	}
	defer m.root.Close() //nolint:errcheck // nothing was written through it
	for _, l := range below {
		m.below = append(m.below, b.path(l.ID, fsName))
	}
	return b.walkLayer(ctx, c.ID, m)
}

// adoptRoot gives the root directory of a layer owner and mode of the one below, as Make does. containerd passes over the
// entry that a layer may have for its root; who sets it otherwise has changed it from what Make made of a base.
func (b *Backend) adoptRoot(id, below uint64) error {
	path := b.path(id, fsName)
	own, err := readRootDir(path)
	if err != nil {
		return err
	}
	want, err := readRootDir(b.path(below, fsName))
	if err != nil || !asMade(own, want) || own.gid != os.Getegid() && own.gid != want.gid {
		return err
	}
	return own.become(want, path)
}

// asMade reports whether a directory has what it was made with, or a part of what it is to have: that of a rebase which was
// cut short. The group says nothing, as a directory with the set-group-id bit gives its own to those made in it.
func asMade(is, want rootDir) bool {
	return (is.uid == os.Geteuid() || is.uid == want.uid) && (is.mode == baseMode || is.mode == want.mode)
}

func (b *Backend) walkLayer(ctx context.Context, id uint64, v visitor) error {
	return b.onRoot("walk", func(fd int) error {
		return walkTree(ctx, fd, fmt.Sprintf("%d/%s", id, fsName), v)
	})
}

// A mender gives the directories of a layer that have no entry in its tar what those below have.
//
// They are told by their times: the applier ends with setting those of all directories that the tar has. One without an entry
// has that of the last file made in it, so between the making of the layer and now. Both ends hold exactly: file systems take
// their time from a clock that never runs ahead of time.Now, and round down; and made is such a time itself.
//
// A directory whose entry has a time of just that span is mistaken for one without, if it also has the mode and the owner that the
// applier gives where nobody says. A clock that was set back in between has the reverse effect: a directory stays root's, as it is
// without this.
type mender struct {
	root  *os.File // of the layer
	made  time.Time
	began time.Time
	below []string // root directories, the topmost first
}

func (mender) dir(*unix.Stat_t)        {}
func (mender) leave(int, string) error { return nil }
func (mender) mountPoint() error       { return nil }

func (m mender) entry(fd int, name string, typ uint8) (descend bool, err error) {
	if typ != unix.DT_DIR {
		return false, nil
	}
	var st unix.Stat_t
	if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return false, err
	}
	if at := time.Unix(st.Mtim.Unix()); at.Before(m.made) || at.After(m.began) {
		return true, nil
	}
	return true, m.mend(fd, name, rootDir{uid: int(st.Uid), gid: int(st.Gid), mode: st.Mode & 0o7777})
}

// mend gives the directory name in the directory parent what the one below has. It keeps its times if something was made
// in it, as it would when unpacked onto the layers below.
func (m mender) mend(parent int, name string, is rootDir) error {
	fd, err := openDir(parent, name)
	if err != nil {
		return err
	}
	dir := os.NewFile(uintptr(fd), name)
	defer dir.Close() //nolint:errcheck // nothing was written through it
	lower, err := m.lower(dir)
	if lower == nil || err != nil {
		return err
	}
	defer lower.Close() //nolint:errcheck // nothing was written through it
	var st unix.Stat_t
	if err := unix.Fstat(int(lower.Fd()), &st); err != nil {
		return err
	}
	want := rootDir{uid: int(st.Uid), gid: int(st.Gid), mode: st.Mode & 0o7777}
	if !asMade(is, want) {
		return nil
	}
	if err := copyAttributes(fd, int(lower.Fd())); err != nil {
		return err
	}
	if err := errors.Join(unix.Fchown(fd, want.uid, want.gid), unix.Fchmod(fd, want.mode)); err != nil {
		return err
	}
	failpoint.Hit("union.rebased-directory")
	if _, err := dir.Readdirnames(1); !errors.Is(err, io.EOF) {
		return err
	}
	times := []unix.Timespec{st.Atim, st.Mtim}
	return unix.UtimesNanoAt(parent, name, times, unix.AT_SYMLINK_NOFOLLOW)
}

// lower returns the topmost directory below dir, or nil if there is none or something else comes first. It looks where
// containerd's applier looks, symbolic links resolved within each layer.
func (m mender) lower(dir *os.File) (*os.File, error) {
	root, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", m.root.Fd()))
	if err != nil {
		return nil, err
	}
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()))
	if err != nil {
		return nil, err
	}
	for _, l := range m.below {
		at, err := cfs.RootPath(l, strings.TrimPrefix(path, root))
		if err != nil {
			return nil, err
		}
		f, err := os.OpenFile(at, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		switch {
		case err == nil:
			return f, nil
		case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
			return nil, nil //nolint:nilnil // a file, or a deletion
		case !errors.Is(err, os.ErrNotExist):
			return nil, err
		}
	}
	return nil, nil //nolint:nilnil // nothing is below
}

// copyAttributes gives the directory to the extended attributes of from that it has not, but for those of the kernel's own use.
func copyAttributes(to, from int) error {
	names := make([]byte, 64<<10) // XATTR_LIST_MAX, and XATTR_SIZE_MAX below
	n, err := unix.Flistxattr(from, names)
	if err != nil {
		return ignore(err, unix.ENOTSUP)
	}
	value := make([]byte, 64<<10)
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
		if name == "" || strings.HasPrefix(name, "trusted.") {
			continue
		}
		n, err := unix.Fgetxattr(from, name, value)
		if err == nil {
			err = unix.Fsetxattr(to, name, value[:n], unix.XATTR_CREATE)
		}
		if err := ignore(err, unix.ENOTSUP, unix.EEXIST, unix.ENODATA); err != nil {
			return &os.PathError{Op: "copy attribute", Path: name, Err: err}
		}
	}
	return nil
}

// ignore returns err unless it is one of these.
func ignore(err error, these ...unix.Errno) error {
	for _, e := range these {
		if errors.Is(err, e) {
			return nil
		}
	}
	return err
}
