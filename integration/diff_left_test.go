package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

// requireNothingLeft checks that no comparison has left anything: nothing half written in the content store, no lease but of layers that
// were written, no view, no mount.
func (c *comparison) requireNothingLeft() {
	c.t.Helper()
	c.requireUndone()
	require.NoError(c.t, c.Walk(c.ctx, func(_ context.Context, info snapshots.Info) error {
		require.NotEqual(c.t, snapshots.KindView, info.Kind, info.Name)
		return nil
	}))
	mounts, err := mountsOf(c.dir)
	require.NoError(c.t, err)
	require.Empty(c.t, mounts)
	if c.daemon != nil {
		c.daemon.requireNoLeak(c.t)
	}
}

// requireUndone checks that containerd keeps nothing of a comparison that has failed. A caller who gives up is not waited for.
func (c *comparison) requireUndone() {
	c.t.Helper()
	require.NoError(c.t, poll(diffTimeout, func() error {
		if err := c.noIngests(); err != nil {
			return err
		}
		if ours := c.ourLeases(); len(ours) != c.kept {
			return fmt.Errorf("of %d layers there are the leases %v", c.kept, ours)
		}
		return nil
	}))
}

func (c *comparison) noIngests() error {
	active, err := c.ours.content().ListStatuses(c.ctx)
	if err == nil && len(active) > 0 {
		err = fmt.Errorf("ingests: %v", active)
	}
	return err
}

// ourLeases are those that Lamina has made.
func (c *comparison) ourLeases() []leases.Lease {
	c.t.Helper()
	all, err := c.ours.leases().List(c.ctx, `labels."lamina/made-by"==diff`)
	require.NoError(c.t, err)
	return all
}

// forgetLeases ends the leases, with the snapshots that they keep, and begins that of the test again. What a daemon that was killed
// had begun to write is containerd's, which collects it when the lease that the daemon took has expired.
func (c *comparison) forgetLeases() {
	c.t.Helper()
	for _, id := range c.words("leases", "ls", "--quiet") {
		c.ctr("leases", "delete", "--sync", id)
	}
	c.kept = 0
	c.requireUndone()
	c.ctr("leases", "create", "--id", lease)
}

// keptByLease has a layer written that nobody refers to: Lamina's lease alone keeps it from being collected.
func (c *comparison) keptByLease() {
	c.t.Helper()
	within(c.t, c.prepare("kept", ""), func(dir string) {
		require.NoError(c.t, os.WriteFile(filepath.Join(dir, "kept"), []byte("by a lease"), 0o600))
	})
	before := c.ourLeases()
	layer := c.mustDiff(c.ours, "kept")
	c.requireSaid("call done", layer.Digest.String())
	c.ctr("content", "prune", "references")
	_, err := c.ours.content().Info(c.ctx, layer.Digest)
	require.NoError(c.t, err, "the layer was collected")
	for _, l := range c.ourLeases() {
		if !slices.ContainsFunc(before, func(b leases.Lease) bool { return b.ID == l.ID }) {
			require.NoError(c.t, c.ours.leases().Delete(c.ctx, l, leases.SynchronousDelete))
			c.kept--
		}
	}
	_, err = c.ours.content().Info(c.ctx, layer.Digest)
	require.ErrorIs(c.t, err, errdefs.ErrNotFound, "it was not the lease that kept it")
	require.NoError(c.t, c.Remove(c.ctx, "kept"))
}

// requireSaid checks what Lamina's log has of the last comparison. A caller who gives up is not waited for.
func (c *comparison) requireSaid(want ...string) {
	c.t.Helper()
	want = append(want, "namespace="+namespaceOf(session))
	require.NoError(c.t, poll(diffTimeout, func() error {
		log, err := os.ReadFile(c.daemon.log)
		if err != nil {
			return err
		}
		last := ""
		for line := range strings.Lines(string(log)) {
			if strings.Contains(line, "method=Diff") {
				last = line
			}
		}
		for _, w := range want {
			if !strings.Contains(last, w) {
				return fmt.Errorf("Lamina says %q, not %q", last, w)
			}
		}
		return nil
	}))
}
