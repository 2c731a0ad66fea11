package lamina

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/lamina-snapshotter/lamina/admin"
	"github.com/lamina-snapshotter/lamina/dmthin"
	"github.com/lamina-snapshotter/lamina/internal/space"
	"github.com/lamina-snapshotter/lamina/metadata"
)

// Status tells the state of the root. What it costs does not depend on how many snapshots there are: the store keeps their
// counts, and of a pool the kernel's own are taken. The version of the program and its address are not known here.
func (f *facts) Status(ctx context.Context) (admin.Status, error) {
	counts := f.store.Counts()
	s := admin.Status{Root: f.config.Root, Snapshotters: f.snapshotters(counts)}
	if f.host != nil {
		s.Running, s.PID, s.Started = true, os.Getpid(), &f.host.started
	}
	var err error
	if s.Store, err = f.describeStore(); err != nil {
		return admin.Status{}, err
	}
	for _, sn := range s.Snapshotters {
		s.Store.Snapshots += sn.Committed + sn.Active + sn.Views
	}
	for _, medium := range []metadata.Medium{metadata.Directory, metadata.Volume} {
		if f.config.serves(medium) || counts.Contents[medium]+counts.Trash[medium] > 0 {
			s.Backends = append(s.Backends, f.backend(ctx, medium, counts))
		}
	}
	return s, ctx.Err()
}

func (f *facts) describeStore() (admin.Store, error) {
	starts, err := f.store.Starts()
	if err != nil {
		return admin.Store{}, err
	}
	bytes, err := f.store.Bytes()
	var commits *admin.Commits
	if f.host != nil {
		stats := f.store.Stats()
		commits = &admin.Commits{Writes: histogram(stats.Batch), Seconds: histogram(stats.Flush)}
	}
	return admin.Store{
		Commits: commits,
		Path:    f.store.Path(), UUID: f.store.UUID(), Schema: f.store.Schema(), Starts: starts, Bytes: bytes,
		Failed: left(f.store.Failed()),
	}, err
}

// histogram counts in each bucket what is in the smaller ones too.
func histogram(h metadata.Histogram) (all admin.Histogram) {
	all.Sum = h.Sum
	for i, n := range h.Counts {
		all.Count += n
		if i < len(h.Bounds) {
			all.Buckets = append(all.Buckets, admin.Bucket{Bound: h.Bounds[i], Count: all.Count})
		}
	}
	return all
}

// snapshotters are the names that are served and those that have snapshots.
func (f *facts) snapshotters(counts metadata.Counts) []admin.Snapshotter {
	names := map[string]bool{}
	for name := range f.config.Snapshotters {
		names[name] = true
	}
	for name := range counts.Names {
		names[name] = name != metadata.Templates
	}
	list := []admin.Snapshotter{}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if !names[name] {
			continue
		}
		kinds := counts.Names[name]
		list = append(list, admin.Snapshotter{
			Name: name, Backend: backendName(f.config.medium(name)),
			Committed: kinds.Committed, Active: kinds.Active, Views: kinds.Views,
		})
	}
	return list
}

func (f *facts) backend(ctx context.Context, medium metadata.Medium, counts metadata.Counts) admin.Backend {
	b := admin.Backend{Name: backendName(medium), Root: f.config.mediumRoot(medium), Trash: counts.Trash[medium]}
	var problem error
	if f.host != nil {
		problem = f.host.set.Broken(medium)
		trash := f.host.set.Trash(medium)
		b.Trash, b.Waiting, b.Failure = trash.Contents, trash.Waiting, left(trash.Failure)
		b.Deleted, b.DeletionsFailed = trash.Deleted, trash.Failed
		if trash.Oldest > 0 {
			b.Oldest = age(trash.Oldest)
		}
	}
	disk, err := f.disk(ctx, medium, b.Root)
	b.Disk = disk
	if problem == nil {
		problem = ignoring(err, fs.ErrNotExist)
	}
	if medium == metadata.Directory && f.host != nil && f.host.union != nil {
		b.Union = &admin.Union{Driver: f.host.union.Driver(), Options: f.host.union.Options(), Quotas: f.host.union.Quotas()}
	}
	if medium == metadata.Volume {
		pool, err := f.poolStatus(ctx, counts)
		b.Pool = pool
		if problem == nil {
			problem = err
		}
	}
	if problem == nil && !f.config.serves(medium) && f.host != nil {
		b.Problem = "there are contents in it, and no snapshotter uses it"
		return b
	}
	b.Problem = left(problem)
	return b
}

// disk is the file system of a directory. One that does not answer is as it was the last time.
func (f *facts) disk(ctx context.Context, medium metadata.Medium, root string) (*admin.Disk, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	d, at, err := f.disks[medium].ask(ctx, func() (space.Disk, error) { return space.Of(root) })
	if at.IsZero() {
		return nil, err
	}
	return &admin.Disk{
		Type: d.Type, Total: d.Total, Used: d.Used, Free: d.Free,
		Inodes: admin.Fill{Used: d.InodesUsed, Total: d.InodesTotal},
	}, err
}

// poolStatus is the state of the pool, nil if there is none or nothing is known of it. With an error it is the last that was known.
func (f *facts) poolStatus(ctx context.Context, counts metadata.Counts) (*admin.Pool, error) {
	status, err := f.thinStatus(ctx)
	if status.Name == "" {
		return nil, err
	}
	pool := describePool(status)
	pool.Volumes = counts.Contents[metadata.Volume] + counts.Trash[metadata.Volume]
	return &pool, err
}

// thinStatus is the last state that was seen. That it is no newer, as the kernel does not answer, it says itself; anything else is an error.
func (f *facts) thinStatus(ctx context.Context) (dmthin.Status, error) {
	if f.host != nil && f.host.thin != nil && f.host.set.Broken(metadata.Volume) == nil {
		return f.host.thin.Status(ctx)
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	c := f.config.Thin
	c.Root, c.Store = f.config.mediumRoot(metadata.Volume), f.store.UUID()
	status, at, err := f.pool.ask(ctx, func() (dmthin.Status, error) {
		return dmthin.LookAtStatus(context.WithoutCancel(ctx), c)
	})
	return lastSeen(status, at, err)
}

func lastSeen(status dmthin.Status, at time.Time, err error) (dmthin.Status, error) {
	switch {
	case at.IsZero():
		return dmthin.Status{}, ignoring(err, fs.ErrNotExist) // there is no pool
	case errors.Is(err, errFactWait):
		status.Silent = time.Since(at)
		return status, nil
	}
	return status, err
}

func describePool(s dmthin.Status) admin.Pool {
	p := admin.Pool{
		Name: s.Name, Mode: s.Mode, NeedsCheck: s.NeedsCheck, TransactionID: s.TransactionID, BlockSize: s.BlockSize,
		Data: admin.Fill(s.Data), Metadata: admin.Fill(s.Metadata), Reserve: s.Reserve, Headroom: s.Headroom, Room: s.Room,
		Limit: s.Limit, Grown: s.Grown, Rate: s.Rate, On: s.On,
	}
	if s.TimeToFull > 0 {
		p.TimeToFull = age(s.TimeToFull)
	}
	if s.Silent > 0 {
		p.Silent = age(s.Silent)
	}
	return p
}

func age(d time.Duration) *admin.Age {
	a := admin.Age(d.Seconds())
	return &a
}

// Status is the state of the root that h has open.
func (h *Host) Status(ctx context.Context) (admin.Status, error) { return h.facts.Status(ctx) }
