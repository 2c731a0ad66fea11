package dmthin

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// What each operation asks of the kernel, so that no request creeps in again: the ioctls of device mapper, no program, and
// allocations that do not grow.
func TestCostOfOperations(t *testing.T) {
	b := openBackend(t, Config{})
	b.watch.stop(t.Context()) // it asks on its own
	require.NoError(t, b.pool.settle(t.Context()), "a look that it has given up")
	child, view := Content{ID: 2}, []Content{{ID: 2}, b.template}
	steps := []struct {
		name     string
		requests uint64
		run      func() error
	}{
		// The pool's status, the state of the origin, the message, the pool's status.
		{"Make", 4, func() (err error) {
			child.Size, err = b.Make(t.Context(), child, view[1:], nil)
			view[0] = child
			return err
		}},
		// The state of the device; it is created, loaded, resumed.
		{"Mounts", 4, func() error { _, err := b.Mounts(t.Context(), view, true, nil); return err }},
		{"Mounts, again", 1, func() error { _, err := b.Mounts(t.Context(), view, true, nil); return err }},
		// The state of the device; what it maps; whether it is mounted.
		{"Usage, active", 4, func() error { _, err := b.Usage(t.Context(), view); return err }},
		// The state of the device, twice; what it maps; the state again, and the device is removed.
		{"Freeze", 5, func() error { _, err := b.Freeze(t.Context(), view); return err }},
		{"Usage, frozen", 0, func() error { _, err := b.Usage(t.Context(), view[:1]); return err }},
		{"Mounts of a view", 4, func() error { _, err := b.Mounts(t.Context(), view, false, nil); return err }},
		{"Release", 2, func() error { return b.Release(t.Context(), child.ID) }},
		{"Delete", 12, func() error { return b.Delete(t.Context(), child) }},
	}
	for range 2 { // the first finds out what is remembered
		for _, step := range steps {
			children, before := childrenUsage(t), b.control.Sent()
			require.NoError(t, step.run(), step.name)
			require.Equal(t, children, childrenUsage(t), "%s starts a program", step.name)
			require.LessOrEqual(t, b.control.Sent()-before, step.requests, step.name)
			t.Logf("%s: %d requests", step.name, b.control.Sent()-before)
		}
	}
	allocations := testing.AllocsPerRun(10, func() {
		for _, step := range steps[:2] {
			require.NoError(t, step.run(), step.name)
		}
		require.NoError(t, b.Delete(t.Context(), child))
	})
	t.Logf("%.0f allocations", allocations)
	require.Less(t, allocations, 305.0, "a fifth more than were counted") // 254
}

// childrenUsage returns what the programs that this process has waited for have used.
func childrenUsage(t *testing.T) unix.Rusage {
	t.Helper()
	var u unix.Rusage
	require.NoError(t, unix.Getrusage(unix.RUSAGE_CHILDREN, &u))
	return u
}
