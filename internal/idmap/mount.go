package idmap

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"
)

// trialID is whom a [Trial] has for another.
const trialID = 100_000

// A Trial is a map to try mounts with: it maps one owner to another.
type Trial struct {
	ns         *os.File
	user       uint32 // the owner on the disk
	group      uint32
	hostUser   uint32 // the one in the mount
	hostGroup  uint32
	filesystem string
}

// NewTrial returns a trial with the owner of something that lies on a file system of that name, which is for messages. The
// kernel wants to be told a map by a user namespace that has it: a process is started in one and killed before it runs
// anything, and the namespace goes with Close.
func NewTrial(ctx context.Context, user, group uint32, filesystem string) (*Trial, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	t := &Trial{user: user, group: group, hostUser: another(user), hostGroup: another(group), filesystem: filesystem}
	ns, err := mount.GetUsernsFD(Range{user, t.hostUser, 1}.String(), Range{group, t.hostGroup, 1}.String())
	if errors.Is(err, unix.EPERM) {
		err = fmt.Errorf("to map ids needs root of the host: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("make a user namespace: %w", err)
	}
	t.ns = ns
	return t, nil
}

func another(id uint32) uint32 {
	if id == trialID {
		return 0
	}
	return trialID
}

// Close lets go of the user namespace.
func (t *Trial) Close() error { return t.ns.Close() }

// Clone returns a mount of the tree at dir, with the map, that is attached nowhere and goes with the file.
func (t *Trial) Clone(dir string) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, t.explain(&os.PathError{Op: "open_tree", Path: dir, Err: err})
	}
	f := os.NewFile(uintptr(fd), dir)
	if err := t.Map(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Map maps a mount, given by what fsmount or open_tree returned, which must be attached nowhere, and checks that its root, which belongs to
// the trial's owner, then belongs to the other one.
func (t *Trial) Map(root *os.File) error {
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(t.ns.Fd())}
	if err := unix.MountSetattr(int(root.Fd()), "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return t.explain(&os.PathError{Op: "mount_setattr", Path: root.Name(), Err: err})
	}
	var st unix.Stat_t
	if err := unix.Fstatat(int(root.Fd()), "", &st, unix.AT_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "stat", Path: root.Name(), Err: err}
	}
	return t.Check(&st)
}

// Check returns an error unless what st is of, which belongs to the trial's owner, is shown with the other one.
func (t *Trial) Check(st *unix.Stat_t) error {
	if st.Uid != t.hostUser || st.Gid != t.hostGroup {
		return fmt.Errorf("what belongs to %d:%d and should be shown as of %d:%d is shown as of %d:%d",
			t.user, t.group, t.hostUser, t.hostGroup, st.Uid, st.Gid)
	}
	return nil
}

// explain says what a refusal of the kernel means.
func (t *Trial) explain(err error) error {
	switch {
	case errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("mounts that map ids need Linux 5.12 or later: %w", err)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%s of this kernel cannot be mounted with other ids: %w", t.filesystem, err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("to mount %s with other ids needs root of the host, and a mount without a map: %w", t.filesystem, err)
	}
	return err
}
