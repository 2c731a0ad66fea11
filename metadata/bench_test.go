package metadata

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"
)

// filled returns a store of n snapshots: chains of ten committed layers, with the keys, parents and labels that
// containerd gives them.
func filled(b *testing.B, n int) *Store {
	b.Helper()
	s := mustOpen(b, filepath.Join(b.TempDir(), "lamina.db"))
	const group = 1000
	var parent Snapshot
	for from := 0; from < n; from += group {
		require.NoError(b, s.update(b.Context(), func(t *tx) error {
			for i := from; i < min(from+group, n); i++ {
				sn := Snapshot{
					ID: s.ReserveID(), Name: "lamina", Key: benchKey(i), Kind: snapshots.KindCommitted,
					Labels:    map[string]string{snapshots.LabelSnapshotRef: benchRef(i)},
					Placement: Placement{Medium: Directory},
				}
				if i%10 > 0 {
					sn.Parent, sn.ParentID = parent.Key, parent.ID
				}
				if err := t.raiseSequence(sn.ID); err != nil {
					return err
				}
				if err := t.insert(sn); err != nil {
					return err
				}
				parent = sn
			}
			return nil
		}))
	}
	return s
}

func benchRef(i int) string { return fmt.Sprintf("sha256:%064x", uint64(i)*0x9e3779b97f4a7c15) }
func benchKey(i int) string { return fmt.Sprintf("default/%d/%s", i, benchRef(i)) }

func sizes(b *testing.B, fn func(b *testing.B, s *Store, n int)) {
	b.Helper()
	for _, n := range []int{100, 100_000} {
		b.Run(fmt.Sprintf("snapshots=%d", n), func(b *testing.B) {
			s := filled(b, n)
			b.ResetTimer()
			fn(b, s, n)
		})
	}
}

func BenchmarkStat(b *testing.B) {
	sizes(b, func(b *testing.B, s *Store, n int) {
		b.Helper()
		for i := 0; b.Loop(); i++ {
			if _, err := s.Get("lamina", benchKey(i*7919%n)); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkChain(b *testing.B) {
	sizes(b, func(b *testing.B, s *Store, n int) {
		b.Helper()
		for i := 0; b.Loop(); i++ {
			if _, _, err := s.Chain("lamina", benchKey(i*7919%n/10*10+9)); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// containerd numbers the keys that it makes, so those of a snapshot and of what it is committed to are neighbours.
func activeKey(n, i int) string { return fmt.Sprintf("default/%d/extract-%d", n+2*i, i) }
func doneKey(n, i int) string   { return fmt.Sprintf("default/%d/%s", n+2*i+1, benchRef(n+i)) }

// createOne records an active snapshot on the last layer of some chain.
func createOne(s *Store, n, i int) error {
	parent, err := s.Get("lamina", benchKey(i*7919%n))
	if err != nil {
		return err
	}
	return s.Create(context.Background(), Snapshot{
		ID: s.ReserveID(), Name: "lamina", Key: activeKey(n, i), Kind: snapshots.KindActive,
		Parent: parent.Key, ParentID: parent.ID, Placement: Placement{Medium: Directory},
	})
}

// BenchmarkCreateCommit is a Create and a Commit, two transactions, done in turn in a store of 100 snapshots and in one of
// 100,000, so that a disk whose speed changes does not decide the ratio. It reports the medians.
func BenchmarkCreateCommit(b *testing.B) {
	small, large := filled(b, 100), filled(b, 100_000)
	var took [2][]time.Duration
	for i := 0; b.Loop(); i++ {
		for side, s := range []*Store{small, large} {
			n := []int{100, 100_000}[side]
			start := time.Now()
			if err := createOne(s, n, i); err != nil {
				b.Fatal(err)
			}
			if err := s.Commit(b.Context(), "lamina", doneKey(n, i), activeKey(n, i), CommitOptions{}); err != nil {
				b.Fatal(err)
			}
			took[side] = append(took[side], time.Since(start))
		}
	}
	few, many := median(took[0]), median(took[1])
	b.ReportMetric(float64(few.Microseconds()), "µs/100")
	b.ReportMetric(float64(many.Microseconds()), "µs/100k")
	b.ReportMetric(float64(many)/float64(few), "ratio")
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

func BenchmarkWalkByRef(b *testing.B) {
	sizes(b, func(b *testing.B, s *Store, n int) {
		b.Helper()
		for i := 0; b.Loop(); i++ {
			found := 0
			filter := fmt.Sprintf("labels.%q==%s", snapshots.LabelSnapshotRef, benchRef(i*7919%n))
			if err := s.Walk(b.Context(), "lamina", func(Snapshot) error { found++; return nil }, filter); err != nil || found != 1 {
				b.Fatal(found, err)
			}
		}
	})
}

func BenchmarkWalkAll(b *testing.B) {
	sizes(b, func(b *testing.B, s *Store, n int) {
		b.Helper()
		for b.Loop() {
			found := 0
			if err := s.Walk(b.Context(), "lamina", func(Snapshot) error { found++; return nil }); err != nil || found != n {
				b.Fatal(found, err)
			}
		}
	})
}

func BenchmarkOpen(b *testing.B) {
	sizes(b, func(b *testing.B, s *Store, _ int) {
		b.Helper()
		path := s.db.Path()
		for b.Loop() {
			if err := s.Close(); err != nil {
				b.Fatal(err)
			}
			s = mustOpen(b, path)
		}
	})
}

// BenchmarkWriters creates snapshots from one goroutine and from 32, in turns of 20 ms. It reports the rates, so group
// commit shows as their ratio.
func BenchmarkWriters(b *testing.B) {
	s := filled(b, 1000)
	var next atomic.Int64
	rate := func(writers int) float64 {
		var wg sync.WaitGroup
		start, before := time.Now(), next.Load()
		for range writers {
			wg.Go(func() {
				for time.Since(start) < 20*time.Millisecond {
					if err := createOne(s, 1000, int(next.Add(1))); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		return float64(next.Load()-before) / time.Since(start).Seconds()
	}
	var rates [2][]float64
	for b.Loop() {
		rates[0] = append(rates[0], rate(1))
		rates[1] = append(rates[1], rate(32))
	}
	for side := range rates {
		slices.Sort(rates[side])
	}
	one, many := rates[0][len(rates[0])/2], rates[1][len(rates[1])/2]
	b.ReportMetric(one, "one/s")
	b.ReportMetric(many, "32/s")
	b.ReportMetric(many/one, "ratio")
}

// A label value near the limit still fits an index key.
func TestLongLabelIsIndexed(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "lamina.db"))
	ref := strings.Repeat("x", 4096-len(snapshots.LabelSnapshotRef))
	require.NoError(t, s.Create(t.Context(), Snapshot{
		ID: s.ReserveID(), Name: strings.Repeat("n", maxKey), Key: strings.Repeat("k", maxKey), Kind: snapshots.KindView,
		Labels: map[string]string{snapshots.LabelSnapshotRef: ref},
	}))
	found := 0
	require.NoError(t, s.Walk(t.Context(), strings.Repeat("n", maxKey), func(Snapshot) error { found++; return nil },
		fmt.Sprintf("labels.%q==%s", snapshots.LabelSnapshotRef, ref)))
	require.Equal(t, 1, found)
	tCheck(t, s)
}
