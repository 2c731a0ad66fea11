package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/stretchr/testify/require"
)

// BenchmarkBeside times Lamina's union backend and containerd's overlay
// snapshotter in turn, both in process, and reports the medians in µs and their
// ratio. Removals are asynchronous in both.
func BenchmarkBeside(b *testing.B) {
	ours := benchHost(b, "off", 1)
	theirs, err := overlay.NewSnapshotter(b.TempDir(), overlay.AsynchronousRemove)
	require.NoError(b, err)
	b.Cleanup(func() { _ = theirs.Close() })
	_, err = theirs.Prepare(b.Context(), "active", "")
	require.NoError(b, err)
	require.NoError(b, theirs.Commit(b.Context(), "base", "active"))

	prepare := func(ctx context.Context, sn snapshots.Snapshotter, key string) error {
		_, err := sn.Prepare(ctx, key, "base")
		return err
	}
	remove := func(ctx context.Context, sn snapshots.Snapshotter, key string) error { return sn.Remove(ctx, key) }
	for name, op := range map[string]struct{ before, do, after asked }{
		"prepare": {nil, prepare, remove},
		"mounts": {prepare, func(ctx context.Context, sn snapshots.Snapshotter, key string) error {
			_, err := sn.Mounts(ctx, key)
			return err
		}, remove},
		"commit": {prepare, func(ctx context.Context, sn snapshots.Snapshotter, key string) error {
			return sn.Commit(ctx, key+"-layer", key)
		}, func(ctx context.Context, sn snapshots.Snapshotter, key string) error {
			return sn.Remove(ctx, key+"-layer")
		}},
		"remove": {prepare, remove, nil},
	} {
		for _, clients := range []int{1, 32} {
			b.Run(fmt.Sprint(name, "/", clients), func(b *testing.B) {
				var took [2][]float64
				for n := 0; b.Loop(); n++ {
					for i, sn := range []snapshots.Snapshotter{ours, theirs} {
						key := fmt.Sprint(b.Name(), n, "-")
						inTurn(b, sn, clients, key, op.before)
						took[i] = append(took[i], float64(inTurn(b, sn, clients, key, op.do).Microseconds()))
						inTurn(b, sn, clients, key, op.after)
						require.NoError(b, sn.(snapshots.Cleaner).Cleanup(b.Context()))
					}
				}
				for i := range took {
					slices.Sort(took[i])
				}
				mine, other := took[0][len(took[0])/2], took[1][len(took[1])/2]
				b.ReportMetric(mine, "µs")
				b.ReportMetric(other, "µs-overlayfs")
				b.ReportMetric(mine/other, "ratio")
			})
		}
	}
}

type asked func(ctx context.Context, sn snapshots.Snapshotter, key string) error

// inTurn calls do from that many clients at once and returns how long it took.
func inTurn(b *testing.B, sn snapshots.Snapshotter, clients int, key string, do asked) time.Duration {
	b.Helper()
	if do == nil {
		return 0
	}
	begun := time.Now()
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			if err := do(b.Context(), sn, fmt.Sprint(key, c)); err != nil {
				b.Error(err)
			}
		})
	}
	wg.Wait()
	return time.Since(begun)
}

// BenchmarkPrepareBesideDeletions times Prepare when the contents of 1,000
// removed snapshots have been deleted, and from their removal until the Cleanup
// that containerd calls after it returns; and that Cleanup, alone and beside it.
func BenchmarkPrepareBesideDeletions(b *testing.B) {
	sn := benchHost(b, "off", 1)
	var took, cleanups [2][]float64
	for n := 0; b.Loop(); n++ {
		for i := range took {
			key := fmt.Sprint(n, "-", i, "-")
			removeWritten(b, sn, key)
			gone := make(chan time.Duration, 1)
			if i == 0 { // the same has been written before, and is gone
				gone <- cleanup(b, sn)
			} else {
				go func() { gone <- cleanup(b, sn) }()
			}
			made := 0
			for ; i == 0 && made < 100 || i == 1 && len(gone) == 0; made++ {
				took[i] = append(took[i], float64(inTurn(b, sn, 1, fmt.Sprint(key, made, "-"), prepareOnBase).Microseconds()))
			}
			cleanups[i] = append(cleanups[i], float64((<-gone).Microseconds()))
			for c := range made {
				require.NoError(b, sn.Remove(b.Context(), fmt.Sprint(key, c, "-", 0)))
			}
			cleanup(b, sn)
		}
	}
	for _, all := range [][]float64{took[0], took[1], cleanups[0], cleanups[1]} {
		slices.Sort(all)
	}
	at := func(all []float64, percent int) float64 { return all[len(all)*percent/100] }
	b.ReportMetric(at(took[0], 50), "µs-quiet")
	b.ReportMetric(at(took[1], 50), "µs")
	b.ReportMetric(at(took[1], 50)/at(took[0], 50), "ratio")
	b.ReportMetric(at(took[1], 90)/at(took[0], 90), "ratio-p90")
	b.ReportMetric(at(cleanups[0], 50), "µs-cleanup")
	b.ReportMetric(at(cleanups[1], 50)/at(cleanups[0], 50), "ratio-cleanup")
}

func prepareOnBase(ctx context.Context, sn snapshots.Snapshotter, key string) error {
	_, err := sn.Prepare(ctx, key, "base")
	return err
}

// removeWritten prepares and removes 1,000 snapshots of three files each.
func removeWritten(b *testing.B, sn snapshots.Snapshotter, key string) {
	b.Helper()
	const removed = 1000
	key += "removed-"
	for c := range removed {
		mounts, err := sn.Prepare(b.Context(), fmt.Sprint(key, c), "")
		require.NoError(b, err)
		for f := range 3 {
			require.NoError(b, os.WriteFile(filepath.Join(source(mounts), fmt.Sprint(f)), []byte("x"), 0o600))
		}
	}
	inTurn(b, sn, removed, key, func(ctx context.Context, sn snapshots.Snapshotter, key string) error { return sn.Remove(ctx, key) })
}

// cleanup returns how long Cleanup took.
func cleanup(b *testing.B, sn snapshots.Snapshotter) time.Duration {
	b.Helper()
	begun := time.Now()
	if err := sn.(snapshots.Cleaner).Cleanup(b.Context()); err != nil {
		b.Error(err)
	}
	return time.Since(begun)
}
