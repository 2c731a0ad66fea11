package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
)

// restartTarget is in seconds.
const restartTarget = 2.0

// restarts is how long it takes from the start of the daemon's program to its first answer.
type restarts struct {
	// Snapshots are all, of which Committed are layers and Active those of containers. The rest are views.
	Snapshots int    `json:"snapshots"`
	Committed int    `json:"committed"`
	Active    int    `json:"active"`
	Stopped   spread `json:"after_a_clean_stop"`
	Killed    spread `json:"after_kill_9"`
}

// storedOf is what the store has that is opened again. A layer of the thin backend is a volume, and takes a while to make: of
// those there are fewer, and views instead, as of one image.
func storedOf(s settings) content {
	layers := s.scale.stored - s.scale.active
	if s.backend == thin {
		layers /= 20
	}
	c := content{chains: max(layers/layersOf, 1), active: s.scale.active}
	c.views = s.scale.stored - c.committed() - c.active
	return c
}

// measureRestart fills a store, and starts the daemon on it again and again. Udevd is ended meanwhile, as a peer's turn has it: in a
// guest of one processor its events of 800 volumes take minutes.
func measureRestart(ctx context.Context, s settings, dir string) (_ section, err error) {
	stored := storedOf(s)
	r := &restarts{Snapshots: stored.snapshots(), Committed: stored.committed(), Active: stored.active}
	d, err := newDaemon(s.lamina, dir, laminaName, s.backend, syncOff)
	if err != nil {
		return nil, err
	}
	over, err := new(peer).turn(ctx, s)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, over()) }()
	if err := d.start(ctx); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	if err := d.fill(ctx, stored); err != nil {
		return nil, err
	}
	_, _ = fmt.Fprintln(s.progress, "restart: the store is filled")
	var stopped, killed []time.Duration
	for range s.scale.restarts {
		for _, way := range []struct {
			end   func() error
			times *[]time.Duration
		}{{d.stop, &stopped}, {d.kill, &killed}} {
			took, err := d.restart(ctx, way.end)
			if err != nil {
				return nil, err
			}
			*way.times = append(*way.times, took)
		}
	}
	r.Stopped, r.Killed = spreadOf(stopped), spreadOf(killed)
	return r, nil
}

// fill fills the store of a daemon that runs. It is stopped to write the views, which are records alone, and started again.
func (d *daemon) fill(ctx context.Context, c content) error {
	views := c.views
	c.views = 0
	err := d.call(func(sn snapshots.Snapshotter) error { return fillStore(ctx, sn, c) })
	if err == nil {
		err = d.stop()
	}
	if err == nil {
		tops := make([]string, c.chains)
		for i := range tops {
			tops[i] = layerKey(i, layersOf-1)
		}
		err = recordViews(ctx, d.root(), tops, c.chains, views)
	}
	if err != nil {
		return err
	}
	return d.start(ctx)
}

// restart ends the daemon, starts it, and returns how long the start took until it answered. What was to be written for the
// last one is written before.
func (d *daemon) restart(ctx context.Context, end func() error) (took time.Duration, err error) {
	err = end()
	if err == nil {
		err = syncDisk(d.dir)
	}
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := d.start(ctx); err != nil {
		return 0, err
	}
	err = d.call(func(sn snapshots.Snapshotter) error {
		_, err := sn.Stat(ctx, layerKey(0, layersOf-1))
		took = time.Since(began)
		return err
	})
	return took, err
}

// call dials the daemon, and calls f with its snapshotter.
func (d *daemon) call(f func(sn snapshots.Snapshotter) error) error {
	conn, err := dial(d.socket())
	if err != nil {
		return err
	}
	return errors.Join(f(proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), laminaName)), conn.Close())
}

func (r *restarts) table(w io.Writer) error {
	_, err := fmt.Fprintf(w, "%d snapshots (%d committed, in chains of %d, %d active): after a clean stop %v, after kill -9 %v\n",
		r.Snapshots, r.Committed, layersOf, r.Active, r.Stopped, r.Killed)
	return err
}

func (r *restarts) targets(settings) []target {
	what := fmt.Sprintf("restart with %d snapshots", r.Snapshots)
	return []target{
		newTarget(what+", after a clean stop", restartTarget, r.Stopped.Median.Seconds(), "s"),
		newTarget(what+", after kill -9", restartTarget, r.Killed.Median.Seconds(), "s"),
	}
}
