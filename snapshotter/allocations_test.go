package snapshotter_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// What an operation allocates has a bound, with the store's transaction and the plain backend's directories. What runs in the
// background counts too, so it is more than what one call takes.
func TestAllocations(t *testing.T) {
	h := mustOpen(t, t.TempDir())
	ctx := t.Context()
	h.layer(t, "base", "")
	_, err := h.Prepare(ctx, "active", "base")
	require.NoError(t, err)
	const runs = 50
	count := func(op string, do func(i int) error) float64 {
		i := 0
		n := testing.AllocsPerRun(runs, func() { // which calls it once before
			if err := do(i); err != nil {
				t.Errorf("%s: %v", op, err)
			}
			i++
		})
		require.NoError(t, h.Cleanup(ctx))
		return n
	}
	for _, c := range []struct {
		op   string
		most float64
		do   func(i int) error
	}{
		{"stat", 25, func(int) error { _, err := h.Stat(ctx, "base"); return err }},
		{"mounts", 65, func(int) error { _, err := h.Mounts(ctx, "active"); return err }},
		{"prepare", 330, func(i int) error { _, err := h.Prepare(ctx, fmt.Sprint("k", i), "base"); return err }},
		{"commit", 250, func(i int) error { return h.Commit(ctx, fmt.Sprint("l", i), fmt.Sprint("k", i)) }},
		{"remove", 200, func(i int) error { return h.Remove(ctx, fmt.Sprint("l", i)) }},
	} {
		n := count(c.op, c.do)
		t.Logf("%s: %v allocations", c.op, n)
		require.Less(t, n, c.most, c.op)
		require.NotZero(t, n, c.op)
	}
}
