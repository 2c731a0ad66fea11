package differ

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/google/uuid"
)

const (
	// leaseTime is how long a layer is kept that nothing refers to yet: the call has it to write the layer, and then the caller to make an
	// image of it. It is that of containerd's own client. The API cannot renew a lease, and the stream that writes the
	// layer is bound to the one it began with, so it has to be longer than any layer takes; one that is thrown away takes up space as long.
	leaseTime = 24 * time.Hour
	// leaseLabel says who made a lease.
	leaseLabel = "lamina/made-by"
)

// lease returns a context with a lease, and what ends that if the call fails. containerd calls another process without the lease of its
// own caller. Without one, a garbage collection between the commit and the manifest that will refer to the layer would take it.
func (d *Differ) lease(ctx context.Context) (context.Context, func(context.Context) error, error) {
	none := func(context.Context) error { return nil }
	if id, ok := leases.FromContext(ctx); ok {
		return leases.WithLease(ctx, id), none, nil // also to the content store, if it came from a client
	}
	if d.leases == nil {
		return ctx, none, nil
	}
	id := "lamina-diff-" + uuid.NewString()
	end := func(ctx context.Context) error { return d.leases.Delete(ctx, leases.Lease{ID: id}) }
	_, err := d.leases.Create(ctx, leases.WithID(id), leases.WithExpiration(leaseTime), leases.WithLabel(leaseLabel, "diff"))
	if err != nil {
		if ctx.Err() != nil { // it may be there, and nobody was told
			d.undo(ctx, "delete the lease", end)
		}
		return ctx, none, fmt.Errorf("take a lease for the layer: %w", err)
	}
	return leases.WithLease(ctx, id), end, nil
}
