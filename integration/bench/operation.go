package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// A size is how much there is of everything.
type size struct {
	perRound   int // how often a serial operation is timed in a round
	walked     int // snapshots that a Walk passes
	files      int // in a layer whose usage is asked for
	quotaFiles int // the same, where there are project quotas
	prepares   int // of one parent at once
	sustained  int // of one parent, made by the clients one after the other, or none are
	removals   int // rounds that have one
	removed    int // while Prepare runs
	clients    int // at once
	restarts   int // of each kind
	stored     int // snapshots in a store that is opened again
	active     int // of those
	imageFiles int // in each layer of the image
	unpacks    int // of an image
	runs       int // of a container
}

// sizeOf is what is done natively, and in a guest, where devmapper needs most of a second for an operation. The usage of a volume
// has nothing to do with the files in it.
func sizeOf(backend string) size {
	if backend == thin {
		return size{
			perRound: 4, walked: 10_000, files: 1000, quotaFiles: 20_000, prepares: 100, removals: 1, removed: 200, clients: 32,
			restarts: 2, stored: 10_000, active: 300, imageFiles: 300, unpacks: 2, runs: 2,
		}
	}
	return size{
		perRound: 10, walked: 10_000, files: 20_000, quotaFiles: 20_000, prepares: 100, sustained: 500, removals: 2, removed: 1000, clients: 32,
		restarts: 5, stored: 10_000, active: 300, imageFiles: 300, unpacks: 7, runs: 7,
	}
}

// short is a little of all, to see that it runs.
func (s size) short() size {
	s.perRound, s.removals, s.restarts, s.unpacks, s.runs = 2, 1, 1, 1, 1
	s.walked, s.files, s.quotaFiles, s.prepares, s.sustained, s.removed = 100, 100, 100, 4, 8, 20
	s.stored, s.active, s.imageFiles, s.clients = 100, 10, 5, 4
	return s
}

// The layers that makeLayers makes.
const (
	base      = "base"      // a file
	many      = "files"     // size.files files, in an active snapshot
	committed = "committed" // the same, committed
)

// A life is what a snapshot goes through, with a key of its own. Each step is timed if it has a name.
type life struct {
	steps  []step
	single bool // is not lived by many at once
	many   bool // has many at once in itself
}

type step struct {
	name string
	do   func(ctx context.Context, sn snapshots.Snapshotter, key string) error
}

// name is that of its first step that is timed.
func (l life) name() string {
	for _, s := range l.steps {
		if s.name != "" {
			return s.name
		}
	}
	return ""
}

func prepare(parent string) func(context.Context, snapshots.Snapshotter, string) error {
	return func(ctx context.Context, sn snapshots.Snapshotter, key string) error {
		_, err := sn.Prepare(ctx, key, parent)
		return err
	}
}

func remove(ctx context.Context, sn snapshots.Snapshotter, key string) error {
	return sn.Remove(ctx, key)
}

// The names of operations that there are targets for.
const (
	opFirst   = "Prepare of a first layer"
	opPrepare = "Prepare"
	opView    = "View"
	opMounts  = "Mounts"
	opStat    = "Stat"
	opUsage   = "Usage"
	opCommit  = "Commit"
	opRemove  = "Remove"
	opLayer   = "Remove of a layer"
	opOfView  = "Remove of a view"
)

func opUsageOf(files int) string    { return fmt.Sprintf("Usage, %d files", files) }
func opUsageAgain(files int) string { return fmt.Sprintf("Usage, %d files, committed, again", files) }
func opPrepares(n int) string       { return fmt.Sprintf("%d Prepares of one parent", n) }

func opSustained(s size) string {
	return fmt.Sprintf("%d Prepares by %d clients", s.sustained, s.clients)
}

// lives returns what is measured.
func lives(s size) []life {
	all := []life{
		{steps: []step{{opFirst, prepare("")}, {"", remove}}},
		child(),
		{steps: []step{{"", prepare(base)}, {opRemove, remove}}},
		{steps: []step{{opView, func(ctx context.Context, sn snapshots.Snapshotter, key string) error {
			_, err := sn.View(ctx, key, base)
			return err
		}}, {opOfView, remove}}},
		{steps: []step{{opStat, func(ctx context.Context, sn snapshots.Snapshotter, _ string) error {
			_, err := sn.Stat(ctx, base)
			return err
		}}}},
		usages(s),
		prepares(opPrepares(s.prepares), s.prepares, s.prepares),
	}
	if s.sustained > 0 {
		all = append(all, prepares(opSustained(s), s.sustained, s.clients))
	}
	return all
}

// prepares is the life of many snapshots of one parent: that many clients make one after the other.
func prepares(name string, times, clients int) life {
	all := func(f func(ctx context.Context, sn snapshots.Snapshotter, key string) error) func(context.Context, snapshots.Snapshotter, string) error {
		return func(ctx context.Context, sn snapshots.Snapshotter, key string) error {
			return by(clients, times, func(i int) error { return f(ctx, sn, key+strconv.Itoa(i)) })
		}
	}
	return life{steps: []step{{name, all(prepare(base))}, {"", all(remove)}}, single: true, many: true}
}

// child is the life of a layer that is unpacked upon another.
func child() life {
	return life{steps: []step{
		{opPrepare, prepare(base)},
		{opMounts, func(ctx context.Context, sn snapshots.Snapshotter, key string) error {
			_, err := sn.Mounts(ctx, key)
			return err
		}},
		{opUsage, usage},
		{"", func(ctx context.Context, sn snapshots.Snapshotter, key string) error { return fill(ctx, sn, key, 1) }},
		{opCommit, func(ctx context.Context, sn snapshots.Snapshotter, key string) error {
			return sn.Commit(ctx, key+"-layer", key)
		}},
		{opLayer, func(ctx context.Context, sn snapshots.Snapshotter, key string) error {
			return remove(ctx, sn, key+"-layer")
		}},
	}}
}

// usages asks again and again for what has been asked for before.
func usages(s size) life {
	l := usageOfMany(s)
	l.steps = append(l.steps, step{opUsageAgain(s.files), func(ctx context.Context, sn snapshots.Snapshotter, _ string) error {
		return usage(ctx, sn, committed)
	}})
	return l
}

func usageOfMany(s size) life {
	return life{steps: []step{
		{opUsageOf(s.files), func(ctx context.Context, sn snapshots.Snapshotter, _ string) error { return usage(ctx, sn, many) }},
	}, single: true}
}

func usage(ctx context.Context, sn snapshots.Snapshotter, key string) error {
	_, err := sn.Usage(ctx, key)
	return err
}

// makeFiles prepares a snapshot with files in it.
func makeFiles(ctx context.Context, sn snapshots.Snapshotter, key, parent string, files int) error {
	if _, err := sn.Prepare(ctx, key, parent); err != nil {
		return err
	}
	return fill(ctx, sn, key, files)
}

// fill mounts a snapshot as an unpack does, and writes files.
func fill(ctx context.Context, sn snapshots.Snapshotter, key string, files int) error {
	mounts, err := sn.Mounts(ctx, key)
	if err != nil {
		return err
	}
	return mount.WithTempMount(ctx, mounts, func(root string) error {
		const inDir = 1000
		for i := range files {
			dir := filepath.Join(root, strconv.Itoa(i/inDir))
			err := ctx.Err()
			if i%inDir == 0 && err == nil {
				err = os.MkdirAll(dir, 0o755) // the parent may have it
			}
			if err == nil {
				err = writeFile(filepath.Join(dir, key+strconv.Itoa(i)))
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// writeFile makes a file of one byte, in three system calls: os.WriteFile needs five, and in a guest each takes a fraction of a millisecond.
func writeFile(path string) error {
	fd, err := unix.Open(path, unix.O_CREAT|unix.O_TRUNC|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	_, err = unix.Write(fd, []byte("x"))
	return errors.Join(err, unix.Close(fd))
}

// makeBase makes the layer that all upon one are upon.
func makeBase(ctx context.Context, sn snapshots.Snapshotter) error {
	if err := makeFiles(ctx, sn, base+"-active", "", 1); err != nil {
		return err
	}
	return sn.Commit(ctx, base, base+"-active")
}

// makeLayers makes what all operations begin with.
func makeLayers(ctx context.Context, p *peer, s size) error {
	if err := makeBase(ctx, p); err != nil {
		return err
	}
	for _, key := range []string{committed + "-active", many} {
		if err := makeFiles(ctx, p, key, base, s.files); err != nil {
			return err
		}
	}
	return errors.Join(p.Commit(ctx, committed, committed+"-active"), usage(ctx, p, committed))
}

// atOnce calls f that often, all at once.
func atOnce(times int, f func(i int) error) error {
	if times == 1 {
		return f(0)
	}
	var g errgroup.Group
	for i := range times {
		g.Go(func() error { return f(i) })
	}
	return g.Wait()
}

// by calls f that often, by a number of clients.
func by(clients, times int, f func(i int) error) error {
	var g errgroup.Group
	g.SetLimit(clients)
	for i := range times {
		g.Go(func() error { return f(i) })
	}
	return g.Wait()
}
