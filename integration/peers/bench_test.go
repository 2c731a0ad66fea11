package peers

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/log"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/integration/guest"
)

const (
	atOnce = 32 // Prepares

	// wanted is how many times as fast as devmapper each operation shall be.
	wanted = 30

	// warmUp rounds are not measured: the first makes Lamina's template.
	warmUp = 1
)

// BenchmarkThinAndDevmapper takes both through the same rounds: in each, all
// operations are timed, and who is first changes. What it prints are medians. Run
// it with -benchtime=10x or so: a round takes devmapper some seconds.
func BenchmarkThinAndDevmapper(b *testing.B) {
	guest.Require(b)
	log.L.Logger.SetOutput(io.Discard)
	peers := []*peer{openLamina(b), openDevmapper(b)}
	times := map[string]timings{}
	for _, p := range peers {
		times[p.name] = timings{}
		p.makeBase(b)
		for i := range warmUp {
			p.round(b, fmt.Sprint("warm-", i), timings{})
		}
	}
	b.ResetTimer()
	for i := 0; b.Loop(); i++ {
		for _, p := range peers {
			p.round(b, fmt.Sprint(i), times[p.name])
		}
		slices.Reverse(peers)
	}
	b.StopTimer()
	report(b, times["lamina"], times["devmapper"])
}

// timings are how long operations took.
type timings map[string][]time.Duration

// timeIt times an operation. udevd has done with the last one by then, and what that
// left to the background is done too. Where the peer needs no udevd it rests during
// the operation: the guest has one processor for both.
func (p *peer) timeIt(b *testing.B, t timings, operation string, f func()) {
	b.Helper()
	p.settle(b)
	run(b, "udevadm", "settle")
	if !p.needsUdev {
		run(b, "udevadm", "control", "--stop-exec-queue")
		defer run(b, "udevadm", "control", "--start-exec-queue")
	}
	start := time.Now()
	f()
	t[operation] = append(t[operation], time.Since(start))
}

func (t timings) median(operation string) time.Duration { return t.quantile(operation, 0.5) }

// quantile returns how long the quickest part of all took at most.
func (t timings) quantile(operation string, part float64) time.Duration {
	all := slices.Sorted(slices.Values(t[operation]))
	return all[int(float64(len(all))*part)]
}

// makeBase makes the layer that all others are upon.
func (p *peer) makeBase(b *testing.B) {
	b.Helper()
	_, err := p.Prepare(b.Context(), "base-active", "")
	require.NoError(b, err)
	p.write(b, "base-active", 4<<20)
	require.NoError(b, p.Commit(b.Context(), "base", "base-active"))
}

// write mounts an active snapshot as an unpack does, writes a file and unmounts.
func (p *peer) write(b *testing.B, key string, size int) {
	b.Helper()
	mounts, err := p.Mounts(b.Context(), key)
	require.NoError(b, err)
	require.NoError(b, mount.WithTempMount(b.Context(), mounts, func(dir string) error {
		return os.WriteFile(filepath.Join(dir, key), make([]byte, size), 0o600)
	}))
}

// round times each operation, and leaves only the base.
func (p *peer) round(b *testing.B, id string, t timings) {
	b.Helper()
	ctx, must := b.Context(), func(_ any, err error) { require.NoError(b, err, p.name) }
	p.timeIt(b, t, "first layer", func() { must(p.Prepare(ctx, "first-"+id, "")) })
	p.timeIt(b, t, "Prepare", func() { must(p.Prepare(ctx, "active-"+id, "base")) })
	p.timeIt(b, t, "View", func() { must(p.View(ctx, "view-"+id, "base")) })
	p.write(b, "active-"+id, 64<<10)
	p.timeIt(b, t, "Usage, active", func() { must(p.Usage(ctx, "active-"+id)) })
	p.timeIt(b, t, "Commit", func() { must(nil, p.Commit(ctx, "layer-"+id, "active-"+id)) })
	p.timeIt(b, t, "Usage, committed", func() { must(p.Usage(ctx, "layer-"+id)) })
	p.timeIt(b, t, "Usage, committed, again", func() { must(p.Usage(ctx, "layer-"+id)) })
	p.timeIt(b, t, "Remove, committed", func() { must(nil, p.Remove(ctx, "layer-"+id)) })
	p.timeIt(b, t, "Remove, active", func() { must(nil, p.Remove(ctx, "first-"+id)) })
	p.timeIt(b, t, "Remove, view", func() { must(nil, p.Remove(ctx, "view-"+id)) })
	many := fmt.Sprintf("%d Prepares", atOnce)
	p.timeIt(b, t, many, func() {
		p.eachAtOnce(b, id, func(ctx context.Context, key string) error {
			_, err := p.Prepare(ctx, key, "base")
			return err
		})
	})
	p.timeIt(b, t, fmt.Sprintf("%d Removes", atOnce), func() { p.eachAtOnce(b, id, p.Remove) })
}

func (p *peer) eachAtOnce(b *testing.B, id string, f func(ctx context.Context, key string) error) {
	b.Helper()
	var wg sync.WaitGroup
	for i := range atOnce {
		wg.Go(func() {
			if err := f(b.Context(), fmt.Sprintf("many-%s-%d", id, i)); err != nil {
				b.Errorf("%s: %v", p.name, err)
			}
		})
	}
	wg.Wait()
}

// settle waits for what goes on in the background, so that it does not disturb
// the other.
func (p *peer) settle(b *testing.B) {
	b.Helper()
	if c, ok := p.Snapshotter.(interface {
		Cleanup(ctx context.Context) error
	}); ok {
		require.NoError(b, c.Cleanup(b.Context()))
	}
}

// report prints the medians, and how many times as long the peer takes.
func report(b *testing.B, ours, theirs timings) {
	b.Helper()
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "\noperation\tlamina\tdevmapper\ttimes\t\n")
	least := 0.0
	for _, op := range slices.Sorted(maps.Keys(ours)) {
		mine, other := ours.median(op), theirs.median(op)
		ratio := float64(other) / float64(mine)
		if least == 0 || ratio < least {
			least = ratio
		}
		short := ""
		if ratio < wanted {
			short = fmt.Sprintf("less than %d", wanted)
		}
		fmt.Fprintf(w, "%s\t%v\t%v\t%.0f\t%s\n", op, mine.Round(time.Microsecond), other.Round(time.Microsecond), ratio, short)
	}
	require.NoError(b, w.Flush())
	b.ReportMetric(least, "least-ratio")
}
