package main

import (
	"context"
	"errors"
	"io"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/log"
	"github.com/sirupsen/logrus"

	"github.com/lamina-snapshotter/lamina"
)

// quiet returns ctx with a logger that says nothing.
func quiet(ctx context.Context) context.Context {
	l := logrus.New()
	l.SetOutput(io.Discard)
	return log.WithLogger(ctx, logrus.NewEntry(l))
}

// linked returns the configuration of a Lamina that is linked in.
func linked(s settings, dir string) lamina.Config {
	c := lamina.DefaultConfig()
	c.Root = filepath.Join(dir, "root")
	c.Snapshotters = map[string]lamina.SnapshotterConfig{laminaName: {Backend: s.backend}}
	c.Union.Sync = "off" // as overlayfs, which syncs nothing
	return c
}

// openAlone opens a snapshotter in this process.
func openAlone(ctx context.Context, s settings, peer, dir string) (sn snapshots.Snapshotter, end func() error, err error) {
	if peer != laminaName {
		p, err := openContainerd(ctx, peer, dir)
		if err != nil {
			return nil, nil, err
		}
		return p.Snapshotter, p.close, nil
	}
	host, err := lamina.Open(ctx, linked(s, dir))
	if err != nil {
		return nil, nil, err
	}
	if sn, err = host.Snapshotter(laminaName); err != nil {
		return nil, nil, errors.Join(err, host.Close())
	}
	return sn, host.Close, nil
}

func chainKey(n int) string { return "chain-" + digest(0, n) }

// makeChain commits so many layers, each upon the one before.
func makeChain(ctx context.Context, sn snapshots.Snapshotter, layers int) error {
	parent := ""
	for n := range layers {
		if _, err := sn.Prepare(ctx, "extract", parent); err != nil {
			return err
		}
		parent = chainKey(n + 1)
		if err := sn.Commit(ctx, parent, "extract"); err != nil {
			return err
		}
	}
	return nil
}

// openFilled opens a snapshotter with a layer and n views of it, with the labels that an image's layers have. Views have records,
// and Lamina's nothing but them: so they are written into its store before it is opened.
func openFilled(ctx context.Context, s settings, peer, dir string, n int) (sn snapshots.Snapshotter, end func() error, err error) {
	sn, end, err = openAlone(ctx, s, peer, dir)
	if err != nil {
		return nil, nil, err
	}
	if err := makeChain(ctx, sn, 1); err != nil {
		return nil, nil, errors.Join(err, end())
	}
	if peer != laminaName {
		err := by(fillers, n, func(i int) error {
			_, err := sn.View(ctx, layerKey(i, 0), chainKey(1), snapshots.WithLabels(imageLabels(i, 0)))
			return err
		})
		if err != nil {
			return nil, nil, errors.Join(err, end())
		}
		return sn, end, nil
	}
	if err := end(); err != nil {
		return nil, nil, err
	}
	if err := recordViews(ctx, linked(s, dir).Root, []string{chainKey(1)}, 0, n); err != nil {
		return nil, nil, err
	}
	return openAlone(ctx, s, peer, dir)
}
