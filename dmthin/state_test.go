package dmthin

import (
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
)

// A commit that fails is an error of the call that it belongs to, though the kernel says nothing of it; so is each call
// after it.
func TestCommitFails(t *testing.T) {
	calls := map[string]func(p *testPool) error{
		"create":   func(p *testPool) error { return p.Create(t.Context(), 2) },
		"snapshot": func(p *testPool) error { return p.Snapshot(t.Context(), 2, 1) },
		"delete":   func(p *testPool) error { return p.Delete(t.Context(), 1, 0, false) },
		"claim":    func(p *testPool) error { return p.Claim(t.Context(), 7) },
	}
	for what, call := range calls {
		t.Run(what, func(t *testing.T) {
			under := "lamina-under" + testPrefix()
			p := newPoolOn(t, func(p *testPool) {
				p.underMetadata = tLinear(t, under, p.metadata)
			})
			linear, err := p.control.Table(under)
			require.NoError(t, err)
			require.NoError(t, p.Create(t.Context(), 1))
			tReplace(t, p.control, under, dm.Target{Length: linear[0].Length, Type: "error"})
			t.Cleanup(func() { tReplace(t, p.control, under, linear[0]) })
			err = call(p)
			require.ErrorIs(t, err, errPoolState)
			require.True(t, errdefs.IsUnavailable(err))
			require.ErrorContains(t, err, p.name+` is in the state "Fail"`)
			for other, call := range calls {
				require.ErrorIs(t, call(p), errPoolState, other)
			}
		})
	}
}

// tReplace gives a device another table.
func tReplace(t *testing.T, control *dm.Control, name string, target dm.Target) {
	t.Helper()
	require.NoError(t, control.Load(name, false, target))
	require.NoError(t, control.Suspend(name, dm.NoFlush))
	require.NoError(t, control.Resume(name))
}
