package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
)

// opWalk is what a Walk of that many snapshots is called.
func opWalk(n int) string { return fmt.Sprintf("Walk of %d", n) }

// walk times a Walk past many snapshots. Those of Lamina's are views of one layer, made through its socket: no volume and no
// directory belongs to one. containerd's databases are given as many before they are opened: a Walk reads nothing else.
func (m *measurement) walk(ctx context.Context) (err error) {
	n := m.scale.walked
	fill := func(root string) error { return fillDatabase(ctx, root, n) }
	_, _ = fmt.Fprintln(m.progress, "operations: Walk")
	if m.peers, err = openPeers(ctx, m.settings, m.dir, fill); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closePeers(m.peers)) }()
	for _, p := range m.peers {
		if p.name == laminaName {
			if err := makeViews(ctx, p, n, m.scale.clients); err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
		}
	}
	for round := range m.rounds + 1 {
		err := m.turns(ctx, 1, opWalk(n), func(ctx context.Context, p *peer) error {
			if p.name == laminaUnion { // the store is the same, whatever the backend
				return nil
			}
			seen := 0
			began := time.Now()
			err := p.Walk(ctx, func(context.Context, snapshots.Info) error {
				seen++
				return nil
			})
			if err == nil && seen < n {
				err = fmt.Errorf("a Walk passes %d snapshots of %d", seen, n)
			}
			if err == nil && round > 0 {
				m.add(opWalk(n), p, time.Since(began))
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// labels are what containerd gives a snapshot.
func labels(i int) snapshots.Opt {
	return snapshots.WithLabels(map[string]string{
		"containerd.io/snapshot.ref": fmt.Sprintf("sha256:%064x", i), "containerd.io/gc.root": "2026-01-02T03:04:05Z",
	})
}

func viewKey(i int) string { return fmt.Sprintf("default/%d/view-%d", i, i) }

// makeViews makes a layer and views of it.
func makeViews(ctx context.Context, p *peer, n, clients int) error {
	if err := makeFiles(ctx, p, base+"-active", "", 1); err != nil {
		return err
	}
	if err := p.Commit(ctx, base, base+"-active"); err != nil {
		return err
	}
	return by(clients, n, func(i int) error {
		_, err := p.View(ctx, viewKey(i), base, labels(i))
		return err
	})
}

// fillDatabase puts as many into the database of a snapshotter of containerd's.
func fillDatabase(ctx context.Context, root string, n int) error {
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
			if _, err := storage.CreateSnapshot(ctx, snapshots.KindView, viewKey(i), base, labels(i)); err != nil {
				return err
			}
		}
		return nil
	})
	return errors.Join(err, store.Close())
}
