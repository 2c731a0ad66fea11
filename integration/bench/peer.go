package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/snapshots"
)

const (
	union = "union"
	thin  = "thin"
)

// A peer is a snapshotter that is measured.
type peer struct {
	snapshots.Snapshotter
	name  string
	close func() error
}

// openPeers starts Lamina and what it is measured beside, each with a directory of its own in dir.
func openPeers(ctx context.Context, s settings, dir string) (peers []*peer, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, closePeers(peers))
		}
	}()
	other := peerOf[s.backend]
	for _, open := range []func(dir string) (*peer, error){
		func(dir string) (*peer, error) { return openLamina(ctx, s, dir) },
		func(dir string) (*peer, error) { return openInProcess(ctx, other, dir) },
		func(dir string) (*peer, error) { return openProxied(ctx, other, dir) },
	} {
		own := filepath.Join(dir, string(rune('a'+len(peers))))
		if err := os.Mkdir(own, 0o700); err != nil {
			return peers, err
		}
		p, err := open(own)
		if err != nil {
			return peers, err
		}
		peers = append(peers, p)
	}
	return peers, nil
}

func closePeers(peers []*peer) error {
	var errs []error
	for _, p := range peers {
		errs = append(errs, p.close())
	}
	return errors.Join(errs...)
}

// settle waits for what removals have left to the background, so that it does not disturb the next.
func (p *peer) settle(ctx context.Context) error {
	if c, ok := p.Snapshotter.(snapshots.Cleaner); ok {
		return c.Cleanup(ctx)
	}
	return nil
}
