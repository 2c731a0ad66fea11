package overlayaufs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Change is one entry of a tree that is not as it is in another: its path, what it is now or nil, whether it is a directory with
// nothing from below in it, and a descriptor of the directory that it is in.
type Change = struct {
	Path   string
	Stat   *unix.Stat_t
	Opaque bool
	Dir    int
}

// Changes tells what the tree that upper shows changes in the one that lower shows: what the topmost content has, where those below it
// are the chain of lower. The layers below are not read.
//
// What is copied up is told of though nobody changed it, and so is what was changed back. Of what changes meanwhile some is
// seen and some is not, as in every copy of a tree in use; what vanishes between its name and its attributes is fs.ErrNotExist.
//
// The inode numbers are those that Dir shows, and all entries have one device: numbers are told of files on the file system of the
// root alone. It writes nothing, and mounts only what goes with a descriptor (see union).
func (b *Backend) Changes(ctx context.Context, lower, upper []mount.Mount, _ func() (Content, error), fn func(Change) error) error {
	from, fromErr := b.parseMounts(lower)
	to, toErr := b.parseMounts(upper)
	if err := errors.Join(fromErr, toErr); err != nil {
		return fmt.Errorf("mounts of the union root %s: %w: %w", b.root, err, errdefs.ErrNotImplemented)
	}
	if slices.Equal(from.chain, to.chain) {
		return ctx.Err()
	}
	if len(to.chain) == 0 || !slices.Equal(from.chain, to.chain[1:]) {
		return fmt.Errorf("layers %v and %v of the union root %s: the first are not what is below the other's topmost: %w",
			from.chain, to.chain, b.root, errdefs.ErrNotImplemented)
	}
	if err := b.checkLinks(to); err != nil {
		return err
	}
	err := b.rehearse(ctx, to)
	if err == nil {
		err = b.tellChanges(ctx, to, fn)
	}
	if err != nil {
		return fmt.Errorf("changes in %s: %w", b.path(to.chain[0], fsName), err)
	}
	return nil
}

// checkLinks refuses the writable layer of a container in which hard links of the layers below are kept together: by an index of
// overlayfs (index=on) or by pseudo-links of aufs. What was written by one name is seen by all of them, and the layer has those alone that
// somebody opened.
func (b *Backend) checkLinks(s shown) error {
	var dir string
	switch {
	case !s.writable:
		return nil
	case s.driver == driverAufs:
		dir = b.path(s.chain[0], fsName, pseudoLinks)
	case slices.Contains(s.options, "index=off"):
		return nil
	default:
		dir = b.path(s.chain[0], workName, "index")
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s: the layer has files with names that are in the layers below alone: %w", dir, errdefs.ErrNotImplemented)
	}
	return nil
}

func (b *Backend) tellChanges(ctx context.Context, s shown, fn func(Change) error) (err error) {
	top, err := b.openShown(s)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(top)) }()
	u := &union{b: b, shown: s, top: top}
	defer func() { err = errors.Join(err, u.close()) }()
	owners, err := b.ownersOf(s)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, owners.close()) }()
	m := marksOf(s)
	c := &changeWalk{
		walk: newWalk(top, nil), ctx: ctx, fn: fn, marks: m, union: u, owners: owners,
		below: &below{b: b, marks: m, layers: s.chain[1:], renamed: map[string]bool{}},
	}
	return c.run(".")
}
