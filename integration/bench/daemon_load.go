package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots"
)

const (
	// loadClients is how many calls a daemon has under way at once while it is filled and worked.
	loadClients = 32
	// perCycle is how many operations a cycle is.
	perCycle = 10
)

// digest is a layer's, as far as its length goes.
func digest(chain, layer int) string {
	return fmt.Sprintf("sha256:%064x", uint64(chain*layersOf+layer+1)*0x9e3779b97f4a7c15)
}

// layerKey is as containerd makes them: its namespace, a number and the name that its client gave.
func layerKey(chain, layer int) string {
	return fmt.Sprintf("k8s.io/%d/%s", chain*layersOf+layer, digest(chain, layer))
}

// imageLabels are those that containerd and CRI give the layers of an image.
func imageLabels(chain, layer int) map[string]string {
	return map[string]string{
		snapshots.LabelSnapshotRef:                   digest(chain, layer),
		"containerd.io/snapshot/cri.image-ref":       fmt.Sprintf("registry.example/team-%d/service:v1.%d", chain%7, chain),
		"containerd.io/snapshot/cri.layer-digest":    digest(chain, layer),
		"containerd.io/snapshot/cri.manifest-digest": digest(chain, layersOf),
	}
}

// A content is what a store is filled with: images of layersOf layers, and active snapshots and views of them.
type content struct {
	chains, active, views int
}

func (c content) committed() int { return c.chains * layersOf }
func (c content) snapshots() int { return c.committed() + c.active + c.views }

func viewKey(i int) string { return fmt.Sprintf("default/%d/view-%d", i, i) }

// fillStore makes all of it, in turn on each of the images.
func fillStore(ctx context.Context, sn snapshots.Snapshotter, c content) error {
	err := by(loadClients, c.chains, func(chain int) error {
		parent := ""
		for layer := range layersOf {
			key, extract := layerKey(chain, layer), fmt.Sprintf("k8s.io/%d/extract-%d", chain, layer)
			labels := snapshots.WithLabels(imageLabels(chain, layer))
			if _, err := sn.Prepare(ctx, extract, parent, labels); err != nil {
				return err
			}
			if err := sn.Commit(ctx, key, extract, labels); err != nil {
				return err
			}
			parent = key
		}
		return nil
	})
	if err != nil {
		return err
	}
	return by(loadClients, c.active+c.views, func(i int) (err error) {
		top := layerKey(i%c.chains, layersOf-1)
		if i < c.active {
			_, err = sn.Prepare(ctx, fmt.Sprintf("k8s.io/%d/%s", i, digest(i, layersOf)), top)
		} else {
			_, err = sn.View(ctx, viewKey(i), top)
		}
		return err
	})
}

// preparesAndRemoves starts and ends so many containers.
func preparesAndRemoves(ctx context.Context, sn snapshots.Snapshotter, tips []string, pairs int) error {
	err := by(loadClients, pairs, func(i int) error {
		key := fmt.Sprintf("k8s.io/pair-%d", i)
		if _, err := sn.Prepare(ctx, key, tips[i%len(tips)]); err != nil {
			return err
		}
		return sn.Remove(ctx, key)
	})
	return errors.Join(err, cleanUp(ctx, sn))
}

// doCycles goes so many times through what there is to be called, and waits until nothing of it is left to be deleted.
func doCycles(ctx context.Context, sn snapshots.Snapshotter, tips []string, round, cycles int) error {
	err := by(loadClients, cycles, func(i int) error {
		return cycle(ctx, sn, tips[(round*cycles+i)%len(tips)], fmt.Sprintf("k8s.io/cycle-%d-%d", round, i))
	})
	return errors.Join(err, cleanUp(ctx, sn))
}

// cycle is perCycle operations, after which all is as it was.
func cycle(ctx context.Context, sn snapshots.Snapshotter, parent, key string) error {
	layer, view := key+"-layer", key+"-view"
	labels := snapshots.WithLabels(imageLabels(0, 0))
	for _, do := range [perCycle]func() error{
		func() error { return statOf(ctx, sn, parent) },
		func() error { _, err := sn.Prepare(ctx, key, parent, labels); return err },
		func() error { _, err := sn.Mounts(ctx, key); return err },
		func() error { return usage(ctx, sn, key) },
		func() error { return sn.Commit(ctx, layer, key, labels) },
		func() error { return statOf(ctx, sn, layer) },
		func() error { _, err := sn.View(ctx, view, layer); return err },
		func() error { _, err := sn.Mounts(ctx, view); return err },
		func() error { return sn.Remove(ctx, view) },
		func() error { return sn.Remove(ctx, layer) },
	} {
		if err := do(); err != nil {
			return err
		}
	}
	return nil
}

func statOf(ctx context.Context, sn snapshots.Snapshotter, key string) error {
	_, err := sn.Stat(ctx, key)
	return err
}

// cleanUp waits until what was removed is deleted.
func cleanUp(ctx context.Context, sn snapshots.Snapshotter) error {
	if c, ok := sn.(snapshots.Cleaner); ok {
		return c.Cleanup(ctx)
	}
	return nil
}
