package overlayaufs

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/snapshots"
	"golang.org/x/sys/unix"
)

// blockSize is the unit of st_blocks, in bytes, whatever the file system's block size is.
const blockSize = 512

// Usage returns the bytes on disk and the inodes that chain[0] takes up without those below it, counted as containerd does: the directory fs
// and everything in it but what aufs keeps for itself, a file with several links once. What is mounted in it is not counted. That the content itself is missing is an
// error with errno ENOENT.
//
// A content in a project of the file system is counted by that, in constant time: see counted. Any other is walked, and what
// vanishes meanwhile is no error. Callers at once share a walk, but none gets the result of one that began before he asked:
// what he has just written is in it. So it is not kept for the next one either. Nothing tells that a content which may be
// written has not changed since: not that it is mounted nowhere, as a mount may have come and gone or be only detached, with
// its files still open, and not the times of its directories. What is committed does not change: the store keeps that.
func (b *Backend) Usage(ctx context.Context, chain []Content) (snapshots.Usage, error) {
	if err := ctx.Err(); err != nil {
		return snapshots.Usage{}, fmt.Errorf("usage of %s: %w", b.path(chain[0].ID), err)
	}
	usage, err := b.counted(ctx, chain[0])
	if err == nil && usage == nil {
		usage, err = b.walks.share(ctx, chain[0].ID, func(ctx context.Context) (*snapshots.Usage, error) {
			return b.walked(ctx, chain[0].ID)
		})
	}
	if err != nil {
		return snapshots.Usage{}, fmt.Errorf("usage in %s: %w", b.root, err)
	}
	return *usage, nil
}

// walked returns the usage of a content by a walk.
func (b *Backend) walked(ctx context.Context, id uint64) (*snapshots.Usage, error) {
	c := &counter{aufs: b.aufs != nil}
	err := b.onRoot("usage", func(fd int) error {
		return walkTree(ctx, fd, dirName(id), c)
	})
	return &c.usage, err
}

// A counter adds up what a walk comes by.
type counter struct {
	usage snapshots.Usage
	links map[inode]struct{} // files with several links, of which one was counted
	aufs  bool               // the tree is, or was, a writable branch of aufs
	dirs  int                // how many were entered
}

// An inode is the identity of a file. A layer on btrfs may have several device numbers, one for each subvolume.
type inode struct{ dev, ino uint64 }

func (c *counter) add(st *unix.Stat_t) {
	c.usage.Inodes++
	c.usage.Size += st.Blocks * blockSize
}

func (c *counter) dir(st *unix.Stat_t) {
	c.dirs++
	c.add(st)
}

func (c *counter) entry(fd int, name string, typ uint8) (descend bool, err error) {
	if c.aufs && c.dirs == 1 && slices.Contains(aufsOwn, name) { // the top is listed before any other is entered
		return false, nil
	}
	if typ == unix.DT_DIR {
		return true, nil // counted when entered
	}
	var st unix.Stat_t
	if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return false, nil
		}
		return false, err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return true, nil
	}
	if st.Nlink > 1 && !c.first(inode{st.Dev, st.Ino}) {
		return false, nil
	}
	c.add(&st)
	return false, nil
}

// first reports whether it is called with i for the first time.
func (c *counter) first(i inode) bool {
	if _, ok := c.links[i]; ok {
		return false
	}
	if c.links == nil {
		c.links = map[inode]struct{}{}
	}
	c.links[i] = struct{}{}
	return true
}

func (c *counter) mountPoint() error { return nil }

func (c *counter) leave(int, string) error { return nil }
