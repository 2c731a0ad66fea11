package snapshotter_test

import (
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// Calls on different snapshots wait for no lock of ours or of bbolt's that somebody holds for long: one that is held over a disk or
// a kernel would make each call wait, which is counted here. Those of the tables of locks and calls are held for a few instructions, and
// somebody meets another there now and then.
func TestContention(t *testing.T) {
	h := mustOpen(t, t.TempDir())
	ctx := t.Context()
	h.layer(t, "base", "")
	const clients, each = 32, 10
	waits := contended(func() {
		var all sync.WaitGroup
		for c := range clients {
			all.Go(func() {
				for i := range each {
					key := fmt.Sprint(c, "-", i)
					_, err := h.Prepare(ctx, key, "base")
					if err == nil {
						_, err = h.Mounts(ctx, key)
					}
					if err == nil {
						err = h.Remove(ctx, key)
					}
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		all.Wait()
	})
	t.Log(waits)
	for at, n := range waits {
		require.Less(t, n, int64(clients*each*3/4), at) // all wait but the first, where each takes such a lock once
	}
}

// contended runs f, and returns how often somebody waited for a lock meanwhile, by the function of ours or of bbolt's that gave it up.
// Who waits on a channel, as for a commit of the store, is not counted.
func contended(f func()) map[string]int64 {
	defer runtime.SetMutexProfileFraction(runtime.SetMutexProfileFraction(1))
	before := waits()
	f()
	after := waits()
	for at, n := range before {
		after[at] -= n
	}
	maps.DeleteFunc(after, func(_ string, n int64) bool { return n == 0 })
	return after
}

func waits() map[string]int64 {
	records := make([]runtime.BlockProfileRecord, 10_000)
	n, _ := runtime.MutexProfile(records)
	found := make(map[string]int64)
	for _, r := range records[:n] {
		if at := slices.IndexFunc(functions(r.Stack()), ofLamina); at >= 0 {
			found[functions(r.Stack())[at]] += r.Count
		}
	}
	return found
}

func ofLamina(function string) bool {
	return strings.Contains(function, "lamina-snapshotter/lamina/") || strings.HasPrefix(function, "go.etcd.io/bbolt.")
}

func functions(stack []uintptr) (names []string) {
	for frames := runtime.CallersFrames(stack); ; {
		frame, more := frames.Next()
		names = append(names, frame.Function)
		if !more {
			return names
		}
	}
}
