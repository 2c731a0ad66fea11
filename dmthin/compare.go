package dmthin

import (
	"context"
	"errors"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/treediff"
)

// A comparison of trees: their file systems, mounted for nobody else, and in what they differ.
type trees struct {
	was, is      *shown // was is nil for none
	lower, upper *detachedMount
	differences  []treediff.Difference
}

// compare mounts both volumes, compares them, and calls fn with the differences. The mounts end with it; if it is given up while
// a device hangs, when that answers.
func (b *Backend) compare(ctx context.Context, was, is *shown, narrow narrowing, fn func(Change) error) error {
	t := &trees{was: was, is: is}
	return b.pool.outlast(ctx, "compare "+is.device, fn, func(ctx context.Context, told func(Change) error) error {
		err := t.mount()
		if lost := b.still(was, is); lost != nil { // what is mounted stays
			err = lost
		}
		if err == nil {
			err = t.compare(ctx, narrow)
		}
		if err == nil {
			err = t.tell(ctx, told)
		}
		return errors.Join(err, t.close())
	})
}

func (t *trees) mount() (err error) {
	if t.was != nil {
		if t.lower, err = mountToRead(t.was.device); err != nil {
			return err
		}
	}
	t.upper, err = mountToRead(t.is.device)
	return err
}

func (t *trees) compare(ctx context.Context, narrow narrowing) error {
	if t.was == nil || t.was.id == t.is.id {
		return nil
	}
	changed, err := narrow(ctx, t)
	if err != nil {
		return err
	}
	t.differences, err = treediff.Compare(ctx, int(t.lower.root.Fd()), int(t.upper.root.Fd()), changed)
	return err
}

// A narrowing returns the inodes that may differ in two trees, or nil if that is not known.
type narrowing func(ctx context.Context, t *trees) (treediff.Inodes, error)

// changedInodes is what the file system can tell. Where it cannot, all inodes are compared, which is the same, but slow: the
// first time that is a warning. A disk that cannot be read is an error.
func (b *Backend) changedInodes(ctx context.Context, t *trees) (treediff.Inodes, error) {
	kind, err := probe(t.is.device)
	if err != nil {
		return nil, err
	}
	changed, err := kind.changedInodes(ctx, t, b.pool)
	if err != nil {
		return nil, b.untold(ctx, t.is.device, err)
	}
	return changed, nil
}

// untold says why a file system could not tell its inodes, and returns nil if they can be looked at.
func (b *Backend) untold(ctx context.Context, device string, err error) error {
	if ctx.Err() != nil || errors.Is(err, unix.EIO) {
		return err
	}
	level := log.WarnLevel
	if b.slow.Swap(true) {
		level = log.DebugLevel
	}
	log.G(ctx).WithError(err).Logf(level, "containers are compared slowly: all inodes of %s have to be looked at", device)
	return nil
}

// mountToRead mounts a device that nobody can write. Who has mounted it too has the same file system.
func mountToRead(device string) (*detachedMount, error) {
	kind, err := probe(device)
	if err != nil {
		return nil, err
	}
	root, err := openRoot(kind, device, kind.mountOptions(true))
	if err != nil {
		return nil, err
	}
	return &detachedMount{device: device, root: root}, nil
}

// close ends the mounts. What a client has mounted too stays so.
func (t *trees) close() error {
	var errs []error
	for _, m := range []*detachedMount{t.lower, t.upper} {
		if m != nil {
			errs = append(errs, m.root.Close())
		}
	}
	return errors.Join(errs...)
}

// tell calls fn with the differences. Who is told reads the files himself.
func (t *trees) tell(ctx context.Context, fn func(Change) error) error {
	told := func(path string, st *unix.Stat_t, dir int) error { return fn(Change{Path: path, Stat: st, Dir: dir}) }
	upper := int(t.upper.root.Fd())
	if t.was == nil {
		return treediff.All(ctx, upper, told)
	}
	return treediff.Tell(ctx, upper, t.differences, told)
}
