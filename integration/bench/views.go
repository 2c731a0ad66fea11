package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"

	"github.com/lamina-snapshotter/lamina/metadata"
)

// fillers is how many records are written at once: they share commits of the store.
const fillers = 256

// recordViews writes views of a layer, with an image's labels, into the store of a Lamina that does not run. A view has a record, and
// nothing but it. Their keys are those of the lowest layers of so many chains, from the chain first on. The parents have them in turn.
func recordViews(ctx context.Context, root string, parents []string, first, n int) error {
	store, err := metadata.Open(filepath.Join(root, "lamina.db"), metadata.Options{})
	if err != nil {
		return err
	}
	err = by(fillers, n, func(i int) error {
		upon, err := store.Get(laminaName, parents[i%len(parents)])
		if err != nil {
			return err
		}
		return store.Create(ctx, metadata.Snapshot{
			ID: store.ReserveID(), Name: laminaName, Key: layerKey(first+i, 0), Kind: snapshots.KindView,
			Parent: upon.Key, ParentID: upon.ID, Labels: imageLabels(first+i, 0),
		})
	})
	return errors.Join(err, store.Close())
}

// databaseViews makes the database of a snapshotter of containerd's with a layer and n views of it, as recordViews does.
func databaseViews(ctx context.Context, root string, n int) error {
	if err := os.Mkdir(root, 0o700); err != nil {
		return err
	}
	store, err := storage.NewMetaStore(filepath.Join(root, "metadata.db"))
	if err != nil {
		return err
	}
	err = store.WithTransaction(ctx, true, func(ctx context.Context) error {
		if _, err := storage.CreateSnapshot(ctx, snapshots.KindActive, base+"-active", ""); err != nil {
			return err
		}
		if _, err := storage.CommitActive(ctx, base+"-active", base, snapshots.Usage{}); err != nil {
			return err
		}
		for i := range n {
			if _, err := storage.CreateSnapshot(ctx, snapshots.KindView, layerKey(i, 0), base, snapshots.WithLabels(imageLabels(i, 0))); err != nil {
				return err
			}
		}
		return nil
	})
	return errors.Join(err, store.Close())
}
