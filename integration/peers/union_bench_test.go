package peers

import (
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/containerd/log"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/integration/guest"
)

const (
	// mostTimesUnion is how many times as long as the union backend the thin one
	// may take for Prepare and Remove together.
	mostTimesUnion = 2

	// rest is how long the kernel has before each call: it goes on with a device
	// that it has removed, and the next one that is made waits for that.
	rest = 10 * time.Millisecond

	// perRound is how many times each is timed in one iteration.
	perRound = 20
)

// BenchmarkThinAndUnion times the calls of both backends in turn, in one
// process, as a client of it sees them. "in a row" is Prepare and Remove again
// and again, with what that leaves to the background beside it; before each of
// the others that has been done, and some time has passed.
func BenchmarkThinAndUnion(b *testing.B) {
	guest.Require(b)
	log.L.Logger.SetOutput(io.Discard)
	run(b, "udevadm", "control", "--stop-exec-queue") // neither needs udevd
	b.Cleanup(func() { run(b, "udevadm", "control", "--start-exec-queue") })
	peers := []*peer{openBackend(b, lamina.BackendThin), openBackend(b, lamina.BackendUnion)}
	times := map[string]timings{}
	for _, p := range peers {
		times[p.name] = timings{}
		p.makeBase(b)
		p.life(b, "warm", timings{})
	}
	b.ResetTimer()
	for i := 0; b.Loop(); i++ {
		for j := range perRound {
			for _, p := range peers {
				p.life(b, fmt.Sprintf("%d-%d", i, j), times[p.name])
			}
			slices.Reverse(peers)
		}
	}
	b.StopTimer()
	reportUnion(b, times[lamina.BackendThin], times[lamina.BackendUnion])
}

// openBackend opens a Lamina that has one backend alone.
func openBackend(b *testing.B, backend string) *peer {
	b.Helper()
	c := lamina.DefaultConfig()
	c.Root = filepath.Join(b.TempDir(), "lamina")
	c.Snapshotters = map[string]lamina.SnapshotterConfig{lamina.DefaultName: {Backend: backend}}
	host, err := lamina.Open(b.Context(), c)
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, host.Close()) })
	sn, err := host.Snapshotter(lamina.DefaultName)
	require.NoError(b, err)
	return &peer{Snapshotter: sn, name: backend}
}

// life times each call on snapshots upon the base, and leaves only that.
func (p *peer) life(b *testing.B, id string, t timings) {
	b.Helper()
	ctx, must := b.Context(), func(_ any, err error) { require.NoError(b, err, p.name) }
	timed := func(operation string, f func()) {
		p.settle(b)
		time.Sleep(rest)
		start := time.Now()
		f()
		t[operation] = append(t[operation], time.Since(start))
	}
	timed("Prepare", func() { must(p.Prepare(ctx, id, "base")) })
	timed("Mounts", func() { must(p.Mounts(ctx, id)) })
	timed("Remove", func() { must(nil, p.Remove(ctx, id)) })
	timed("first layer", func() { must(p.Prepare(ctx, id, "")) })
	timed("Usage, active", func() { must(p.Usage(ctx, id)) })
	timed("Commit", func() { must(nil, p.Commit(ctx, "layer-"+id, id)) })
	timed("View", func() { must(p.View(ctx, id, "layer-"+id)) })
	must(nil, p.Remove(ctx, id))
	must(nil, p.Remove(ctx, "layer-"+id))
	timed("Prepare and Remove", func() {
		must(p.Prepare(ctx, id, "base"))
		must(nil, p.Remove(ctx, id))
	})
	p.settle(b)
	const row = 4
	start := time.Now()
	for range row {
		must(p.Prepare(ctx, id, "base"))
		must(nil, p.Remove(ctx, id))
	}
	t["in a row"] = append(t["in a row"], time.Since(start)/row)
}

// reportUnion prints the medians, and how many times as long the thin one takes;
// and the same of the quickest tenth, which tells more on a machine that has
// other things to do.
func reportUnion(b *testing.B, thin, union timings) {
	b.Helper()
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, "\noperation\tthin\tunion\ttimes\tthin, 10 %\tunion, 10 %\ttimes\t\n")
	for _, op := range slices.Sorted(maps.Keys(thin)) {
		fmt.Fprint(w, op)
		for _, part := range []float64{0.5, 0.1} {
			a, u := thin.quantile(op, part), union.quantile(op, part)
			fmt.Fprintf(w, "\t%v\t%v\t%.2f", a.Round(time.Microsecond), u.Round(time.Microsecond), float64(a)/float64(u))
		}
		fmt.Fprint(w, "\t\n")
	}
	require.NoError(b, w.Flush())
	both := "Prepare and Remove"
	times := float64(thin.median(both)) / float64(union.median(both))
	b.ReportMetric(times, "times-union")
	if times > mostTimesUnion {
		b.Logf("%.2f times as long as the union, at most %d were asked for", times, mostTimesUnion)
	}
}
