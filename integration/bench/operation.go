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
)

// A scale is how much there is of everything.
type scale struct {
	walked   int // snapshots that a Walk passes
	files    int // in a layer whose usage is asked for
	prepares int // of one parent at once
	removed  int // while Prepare runs
	clients  int // at once
}

var full = scale{walked: 10_000, files: 20_000, prepares: 100, removed: 1000, clients: 32}

func (s scale) tenth() scale {
	return scale{walked: s.walked / 10, files: s.files / 10, prepares: s.prepares / 10, removed: s.removed / 10, clients: s.clients}
}

// The layers that makeLayers makes.
const (
	base = "base"  // a file
	many = "files" // scale.files files, in an active snapshot
)

// An operation is what is timed: do, with a key of its own.
type operation struct {
	name   string
	before func(ctx context.Context, sn snapshots.Snapshotter, key string) error // may be nil
	do     func(ctx context.Context, sn snapshots.Snapshotter, key string) error
	after  func(ctx context.Context, sn snapshots.Snapshotter, key string) error // may be nil
	single bool                                                                  // is not done by many at once
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

// operations returns what is measured, in the order of a snapshot's life.
func operations(s scale) []operation {
	return []operation{
		{name: "Prepare of a first layer", do: prepare(""), after: remove},
		{name: "Prepare", do: prepare(base), after: remove},
		{name: "View", do: func(ctx context.Context, sn snapshots.Snapshotter, key string) error {
			_, err := sn.View(ctx, key, base)
			return err
		}, after: remove},
		{name: "Mounts", before: prepare(base), do: func(ctx context.Context, sn snapshots.Snapshotter, key string) error {
			_, err := sn.Mounts(ctx, key)
			return err
		}, after: remove},
		{name: "Stat", do: func(ctx context.Context, sn snapshots.Snapshotter, _ string) error {
			_, err := sn.Stat(ctx, base)
			return err
		}},
		{name: "Usage, empty", before: prepare(base), do: usage, after: remove},
		{name: fmt.Sprintf("Usage, %d files", s.files), do: func(ctx context.Context, sn snapshots.Snapshotter, _ string) error {
			return usage(ctx, sn, many)
		}, single: true},
		{name: "Commit", before: fill, do: func(ctx context.Context, sn snapshots.Snapshotter, key string) error {
			return sn.Commit(ctx, key+"-layer", key)
		}, after: func(ctx context.Context, sn snapshots.Snapshotter, key string) error {
			return sn.Remove(ctx, key+"-layer")
		}},
		{name: "Remove", before: prepare(base), do: remove},
		{name: fmt.Sprintf("%d Prepares of one parent", s.prepares), do: func(ctx context.Context, sn snapshots.Snapshotter, key string) error {
			return atOnce(s.prepares, func(i int) error { return prepare(base)(ctx, sn, key+strconv.Itoa(i)) })
		}, after: func(ctx context.Context, sn snapshots.Snapshotter, key string) error {
			return atOnce(s.prepares, func(i int) error { return sn.Remove(ctx, key+strconv.Itoa(i)) })
		}, single: true},
	}
}

func usage(ctx context.Context, sn snapshots.Snapshotter, key string) error {
	_, err := sn.Usage(ctx, key)
	return err
}

// fill is prepare with a file in it.
func fill(ctx context.Context, sn snapshots.Snapshotter, key string) error {
	return makeFiles(ctx, sn, key, base, 1)
}

// makeFiles prepares a snapshot with files in it.
func makeFiles(ctx context.Context, sn snapshots.Snapshotter, key, parent string, files int) error {
	mounts, err := sn.Prepare(ctx, key, parent)
	if err != nil {
		return err
	}
	return mount.WithTempMount(ctx, mounts, func(root string) error {
		for i := range files {
			dir := filepath.Join(root, strconv.Itoa(i/1000))
			err := os.MkdirAll(dir, 0o755)
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, key+strconv.Itoa(i)), []byte("x"), 0o600)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// makeLayers makes what all operations begin with.
func makeLayers(ctx context.Context, p *peer, s scale) error {
	if err := makeFiles(ctx, p, base+"-active", "", 1); err != nil {
		return err
	}
	return errors.Join(p.Commit(ctx, base, base+"-active"), makeFiles(ctx, p, many, base, s.files))
}

// atOnce calls f that often, all at once.
func atOnce(times int, f func(i int) error) error {
	var g errgroup.Group
	for i := range times {
		g.Go(func() error { return f(i) })
	}
	return g.Wait()
}
