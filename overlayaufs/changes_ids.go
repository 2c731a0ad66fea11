package overlayaufs

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/internal/idmap"
)

// mapBack gives a mount that is attached nowhere, of a layer with the ids of a host, those of the container. The kernel then
// translates what is in attributes too (security.capability).
func mapBack(fd int, ids *idmap.Map) error {
	options := ids.Inverse().Options()
	ns, err := mount.GetUsernsFD(strings.TrimPrefix(options[0], "uidmap="), strings.TrimPrefix(options[1], "gidmap="))
	if err != nil {
		return fmt.Errorf("a user namespace for the ids of the container: %w", err)
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())}
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr)
	if err != nil {
		err = &os.PathError{Op: "mount_setattr", Path: ns.Name(), Err: err}
	}
	return errors.Join(err, ns.Close())
}

// owners finds out what in a layer belongs to somebody whom the map of its container lacks. To the container that is nobody, which no layer
// should say: its next user may have somebody of that number.
type owners struct {
	ids         *idmap.Map // or nil
	raw         *os.File   // the layer as it is on the disk
	user, group uint32     // shown in the place of those that are not mapped
}

func (b *Backend) ownersOf(s shown) (o *owners, err error) {
	o = &owners{ids: s.ids}
	if s.ids == nil {
		return o, nil
	}
	if o.user, err = overflowID("uid"); err != nil {
		return nil, err
	}
	if o.group, err = overflowID("gid"); err != nil {
		return nil, err
	}
	o.raw, err = os.Open(b.path(s.chain[0], fsName))
	return o, err
}

func overflowID(kind string) (uint32, error) {
	text, err := os.ReadFile("/proc/sys/kernel/overflow" + kind)
	if err != nil {
		return 0, err
	}
	id, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
	return uint32(id), err
}

func (o *owners) close() error {
	if o.raw == nil {
		return nil
	}
	return o.raw.Close()
}

// check refuses an entry that is shown as nobody's and is not. What is not in the layer itself has the ids of an image.
func (o *owners) check(where string, shown *unix.Stat_t) error {
	if o.ids == nil || shown.Uid != o.user && shown.Gid != o.group {
		return nil
	}
	dir, err := openIn(int(o.raw.Fd()), path.Dir(where))
	if isGone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	var st unix.Stat_t
	err = unix.Fstatat(dir, path.Base(where), &st, unix.AT_SYMLINK_NOFOLLOW)
	if err = errors.Join(err, unix.Close(dir)); err != nil {
		return unlessMissing(err)
	}
	user, group, ok := o.ids.Host(shown.Uid, shown.Gid)
	if ok && user == st.Uid && group == st.Gid {
		return nil
	}
	return fmt.Errorf("/%s belongs to user %d and group %d, whom the container's id map lacks; give it to somebody whom it has, or remove it: %w",
		where, st.Uid, st.Gid, errdefs.ErrFailedPrecondition)
}
