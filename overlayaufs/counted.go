package overlayaufs

import (
	"context"
	"errors"
	"strconv"

	"github.com/containerd/containerd/v2/core/snapshots"
	"golang.org/x/sys/unix"
)

// counted returns what the file system counts for a content, or nil if that is not known: it is in no project, there are no
// quotas now, or its directory is in another project than the store says, as after a restore from a copy.
//
// The counter has all that is in the content's directory. What is not the layer's is taken off: the directory itself and what is
// beside fs in it, which is a few entries of overlayfs's own (with union.index = "on" one more for each file that was
// copied up and had several names). So it is what a walk adds up, but for two things. What was deleted and is still open in
// a process counts, as it still takes up space; and on xfs what was deleted a moment ago may.
//
// Blocks that are to be allocated when a file is written back count from the moment of the write, in a walk as well. A syncfs
// settles how many they are.
func (b *Backend) counted(ctx context.Context, c Content) (*snapshots.Usage, error) {
	if c.Project == 0 || !b.projects.Counted {
		return nil, nil
	}
	id := strconv.FormatUint(c.ID, 10)
	if project, err := b.projectOf(id + "/" + fsName); err != nil || project != c.Project {
		return nil, err
	}
	count, err := b.count(c.Project)
	if err != nil {
		return nil, err
	}
	o := &overhead{}
	if err := b.onRoot("usage", func(fd int) error { return b.addOverhead(ctx, fd, id, o) }); err != nil {
		return nil, err
	}
	// Neither is negative: the figures are not of one moment.
	return &snapshots.Usage{
		Size:   max(int64(count.Bytes)-o.usage.Size, 0),
		Inodes: max(int64(count.Inodes)-o.usage.Inodes, 0),
	}, nil
}

// addOverhead adds up what is in the directory of a content without being the layer's.
func (b *Backend) addOverhead(ctx context.Context, root int, id string, o *overhead) error {
	err := walkTree(ctx, root, id, o)
	if b.aufs == nil {
		return err
	}
	for _, name := range aufsOwn {
		name = id + "/" + fsName + "/" + name
		if err == nil {
			err = walkTree(ctx, root, name, o)
		}
		if errors.Is(err, unix.ENOTDIR) {
			_, err = o.entry(root, name, unix.DT_REG)
		}
		if isGone(err) {
			err = nil
		}
	}
	return err
}

// overhead adds that up. It passes over the layer's own directory.
type overhead struct{ counter }

func (o *overhead) entry(fd int, name string, typ uint8) (descend bool, err error) {
	if o.dirs == 1 && (name == fsName || name == newName) { // the top is listed before any other is entered
		return false, nil
	}
	if typ == unix.DT_DIR {
		return true, nil
	}
	var st unix.Stat_t
	if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		if isGone(err) {
			return false, nil
		}
		return false, err
	}
	if st.Nlink == 1 { // otherwise it is the layer's too: what overlayfs indexes, and the whiteout that it makes others of
		o.add(&st)
	}
	return false, nil
}
