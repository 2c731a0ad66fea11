package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
)

// opWalk is what a Walk of that many snapshots is called.
func opWalk(n int) string { return fmt.Sprintf("Walk of %d", n) }

// walk times a Walk past many snapshots, which are views of one layer: no volume and no directory belongs to one. They are in the stores
// before these are opened: a Walk reads nothing else.
func (m *measurement) walk(ctx context.Context) (err error) {
	n := m.scale.walked
	s := m.settings
	s.views = n
	_, _ = fmt.Fprintln(m.progress, "operations: Walk")
	if m.peers, err = openPeers(ctx, s, m.dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closePeers(m.peers)) }()
	for round := range m.rounds + 1 {
		err := m.turns(ctx, 1, opWalk(n), func(ctx context.Context, p *peer) error {
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
