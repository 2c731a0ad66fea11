package lamina

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/lamina-snapshotter/lamina/admin"
	"github.com/lamina-snapshotter/lamina/dmthin"
	"github.com/lamina-snapshotter/lamina/metadata"
	"github.com/lamina-snapshotter/lamina/overlayaufs"
)

// poolShare is how many steps of the progress the look at a pool takes; each directory that is walked is one.
const poolShare = 100

// Space tells for each snapshot what it takes up, and what the deletion of it and of all upon it gives back. What directories take
// up is as it was recorded when they were committed, or counted by the file system, or walked; what volumes do is read from the
// pool's metadata. A snapshot that is removed meanwhile is left out, and so is one whose volume is newer than that look; and those of
// which nothing is known as their backend fails, or its pool hangs, which is admin.ErrPartial.
func (f *facts) Space(ctx context.Context, progress func(done, total int), each func(admin.Space) error) error {
	return f.space(ctx, poolLook{f.readPool, poolPatience}, keepOpen, progress, each)
}

// Space is that of a daemon. It closes the root once all that is in its store and its pool has been read: the walk of directories may
// take minutes, for which no start waits.
func (s Stopped) Space(ctx context.Context, progress func(done, total int), each func(admin.Space) error) error {
	return s.space(ctx, poolLook{s.readPool, poolPatience}, s.Close, progress, each)
}

func keepOpen() error { return nil }

// space calls closeRoot before it walks directories.
func (f *facts) space(
	ctx context.Context, pool poolLook, closeRoot func() error, progress func(done, total int), each func(admin.Space) error,
) error {
	s, err := f.survey(ctx)
	if err != nil {
		return err
	}
	steps := newSteps(progress, s)
	defer steps.end()
	failed := of(BackendThin, s.measureVolumes(ctx, pool, steps))
	if err := closeRoot(); err != nil {
		return err
	}
	failed = errors.Join(failed, of(BackendUnion, f.measureDirectories(ctx, s, steps)))
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	s.sumUp()
	for _, t := range s.taken {
		if t.unknown {
			continue
		}
		if err := each(t.Space); err != nil {
			return err
		}
	}
	if failed != nil {
		return fmt.Errorf("%w: %w", admin.ErrPartial, failed)
	}
	return nil
}

// of names the backend that has failed.
func of(backend string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("the %s backend: %w", backend, err)
}

// A spaceSurvey is what the snapshots of a root take up, each behind those that it is made upon.
type spaceSurvey struct {
	taken   []taken
	parents dmthin.Genealogy // of volumes
	walks   int              // directories of which nothing is recorded
}

// A taken is what one snapshot takes up.
type taken struct {
	admin.Space
	id, parent metadata.ID
	place      metadata.Placement
	recorded   bool // what a directory takes up
	unknown    bool // nothing can be said
	failed     bool // nor of those below
}

// survey reads the records.
func (f *facts) survey(ctx context.Context) (*spaceSurvey, error) {
	s := &spaceSurvey{parents: dmthin.Genealogy{}}
	err := f.store.WalkTrees(ctx, func(sn metadata.Snapshot) error {
		t := taken{
			Space: admin.Space{Name: sn.Name, Key: sn.Key}, id: sn.ID, parent: sn.ParentID, place: sn.Placement,
		}
		if sn.Placement.Medium == metadata.Directory {
			if t.recorded = sn.Usage != nil && sn.Kind == snapshots.KindCommitted; t.recorded {
				t.Own = uint64(sn.Usage.Size)
			} else {
				s.walks++
			}
		}
		s.taken = append(s.taken, t)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return s, f.addGenealogy(s.parents)
}

// addGenealogy notes upon which volumes others are made, templates too.
func (f *facts) addGenealogy(parents dmthin.Genealogy) error {
	links, err := f.store.Contents(metadata.Volume)
	if err != nil {
		return err
	}
	devices := make(map[metadata.ID]uint32, len(links))
	for _, l := range links {
		devices[l.ID] = l.Placement.Device
	}
	for _, l := range links {
		if device, ok := devices[l.ParentID]; ok {
			parents[l.Placement.Device] = device
		}
	}
	return nil
}

// measureVolumes sets what the snapshots have of the pool.
func (s *spaceSurvey) measureVolumes(ctx context.Context, pool poolLook, steps *steps) error {
	if !s.hasVolumes() {
		return nil
	}
	volumes, err := pool.do(ctx, s.parents, steps.pool)
	steps.pool(1, 1)
	found := make(map[uint32]dmthin.VolumeUsage, len(volumes))
	for _, v := range volumes {
		found[v.ID] = v
	}
	for i := range s.taken {
		t := &s.taken[i]
		if t.place.Medium != metadata.Volume {
			continue
		}
		v, ok := found[t.place.Device]
		t.Own, t.Shared, t.Freed, t.unknown = v.Exclusive, v.Mapped-v.Exclusive, v.Freed, !ok
	}
	return err
}

func (s *spaceSurvey) hasVolumes() bool {
	return slices.ContainsFunc(s.taken, func(t taken) bool { return t.place.Medium == metadata.Volume })
}

// poolPatience is for how long a look at a pool may make no progress: more than a commit of a busy one takes, or a look of somebody
// else, for whom it waits.
const poolPatience = time.Minute

// A poolLook reads what the volumes of a pool take up.
type poolLook struct {
	read     func(ctx context.Context, parents dmthin.Genealogy, progress func(done, total uint64)) ([]dmthin.VolumeUsage, error)
	patience time.Duration
}

// do reads, and gives up what makes no progress: that is left behind.
func (l poolLook) do(ctx context.Context, parents dmthin.Genealogy, progress func(done, total uint64)) ([]dmthin.VolumeUsage, error) {
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	still := time.AfterFunc(l.patience, func() { giveUp(fmt.Errorf("it has not gone on for %s", l.patience)) })
	defer still.Stop()
	type result struct {
		volumes []dmthin.VolumeUsage
		err     error
	}
	ended := make(chan result, 1)
	go func() {
		volumes, err := l.read(ctx, parents, func(done, total uint64) {
			still.Reset(l.patience)
			progress(done, total)
		})
		ended <- result{volumes, err}
	}()
	select {
	case r := <-ended:
		return r.volumes, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// readPool reads the metadata of the pool, be it open or not.
func (f *facts) readPool(ctx context.Context, parents dmthin.Genealogy, progress func(done, total uint64)) ([]dmthin.VolumeUsage, error) {
	if f.host != nil && f.host.thin != nil {
		return f.host.thin.VolumesSpace(ctx, parents, progress)
	}
	c := f.config.Thin
	c.Root, c.Store = f.config.mediumRoot(metadata.Volume), f.store.UUID()
	return dmthin.LookAtSpace(ctx, c, parents, progress)
}

// measureDirectories sets what directories take up of which nothing is recorded. It returns the first error of one.
func (f *facts) measureDirectories(ctx context.Context, s *spaceSurvey, steps *steps) (failed error) {
	for i := range s.taken {
		t := &s.taken[i]
		if t.place.Medium != metadata.Directory || t.recorded {
			continue
		}
		usage, err := f.measureDirectory(ctx, t)
		t.unknown = err != nil
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		// One that is not there was removed meanwhile, or is damage, which the doctor finds.
		if err = ignoring(err, fs.ErrNotExist); err != nil {
			t.failed = true
			failed = cmp.Or(failed, fmt.Errorf("snapshot %q of %q: %w", t.Key, t.Name, err))
		}
		t.Own = uint64(max(usage.Size, 0))
		steps.directory()
	}
	return failed
}

func (f *facts) measureDirectory(ctx context.Context, t *taken) (snapshots.Usage, error) {
	if f.host != nil && f.host.union != nil {
		return f.host.union.Usage(ctx, []overlayaufs.Content{{ID: uint64(t.id), Project: t.place.Project}})
	}
	return overlayaufs.Measure(ctx, f.config.mediumRoot(metadata.Directory), uint64(t.id))
}

// sumUp sets what the deletion of directories with all upon them gives back. Children come behind their parents.
func (s *spaceSurvey) sumUp() {
	freed, failed := map[metadata.ID]uint64{}, map[metadata.ID]bool{}
	for i := range slices.Backward(s.taken) {
		t := &s.taken[i]
		if t.place.Medium == metadata.Directory {
			t.failed = t.failed || failed[t.id]
			t.unknown = t.unknown || t.failed
			failed[t.parent] = failed[t.parent] || t.failed
			t.Freed = t.Own + freed[t.id]
			freed[t.parent] += t.Freed
		}
	}
}

// steps tell the progress of a Space, and nothing after its end: what hangs may go on after that.
type steps struct {
	mu     sync.Mutex
	tell   func(done, total int) // nil when nobody asks, or after the end
	walked int
	walks  int
	read   int // of the pool, up to whole
	whole  int // 0 if there are no volumes
}

func newSteps(tell func(done, total int), s *spaceSurvey) *steps {
	p := &steps{tell: tell, walks: s.walks}
	if s.hasVolumes() {
		p.whole = poolShare
	}
	return p
}

// pool notes how much of the pool's metadata was read.
func (p *steps) pool(done, total uint64) {
	p.note(func() { p.read = int(done * poolShare / max(total, 1)) })
}

// directory notes that one more was walked.
func (p *steps) directory() { p.note(func() { p.walked++ }) }

func (p *steps) note(fn func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.tell == nil {
		return
	}
	before := p.walked + p.read
	if fn(); p.walked+p.read != before {
		p.tell(p.walked+p.read, p.walks+p.whole)
	}
}

func (p *steps) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tell = nil
}

// Space tells for each snapshot what it takes up, and what the deletion of it and of all upon it gives back.
func (h *Host) Space(ctx context.Context, progress func(done, total int), each func(admin.Space) error) error {
	return h.facts.Space(ctx, progress, each)
}
