package dm

import (
	"errors"
	"os"
	"slices"
	"testing"
	"time"
)

// BenchmarkVolumeLife times the requests that a copy of a volume cannot do without, on a pool as the thin backend has it: what
// an operation of that takes beyond them is its own. It reports medians; "prepare" is what makes a copy and its device together,
// and "discard" is that of a volume of 10 GiB that has 4 MiB in common with its origin.
func BenchmarkVolumeLife(b *testing.B) {
	c := tDM(b)
	pool, _ := tPool(b, c)
	const sectors = 10 << 21
	mustDo(b, c.CreateThin(pool.Name, 1))
	origin := tActive(b, c, false, Thin{Pool: pool.Dev, ID: 1}.Target(sectors))
	mustDo(b, write(origin.Name, 4<<20))
	mustDo(b, c.Remove(origin.Name))
	times := map[string][]time.Duration{}
	timed := func(what string, fn func() error) {
		start := time.Now()
		err := fn()
		times[what] = append(times[what], time.Since(start))
		mustDo(b, err)
	}
	name := tName()
	for b.Loop() {
		var info Info
		timed("prepare", func() error {
			timed("create_snap", func() error { return c.CreateSnap(pool.Name, 2, 1) })
			timed("create", func() (err error) { info, err = c.Create(name, ""); return err })
			timed("load", func() error { return c.Load(name, false, Thin{Pool: pool.Dev, ID: 2}.Target(sectors)) })
			timed("resume", func() error { return c.Resume(name) })
			return nil
		})
		timed("info", func() error { _, err := c.Info(name); return err })
		timed("status", func() error { _, err := c.PoolStatus(pool.Name); return err })
		timed("node", func() error { return c.MakeNode(name, info.Dev) })
		timed("discard", func() error { return discardAll(name, 4<<20) })
		timed("remove", func() error { return c.Remove(name) })
		timed("node-gone", func() error { return c.RemoveNode(name) })
		timed("delete", func() error { return c.DeleteThin(pool.Name, 2) })
	}
	for what, all := range times {
		slices.Sort(all)
		b.ReportMetric(float64(all[len(all)/2].Microseconds()), what+"-µs")
	}
}

func discardAll(name string, size uint64) error {
	f, err := os.OpenFile(Node(name), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(Discard(f, 0, size), f.Close())
}
