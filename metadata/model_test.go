package metadata

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"
)

const (
	tWait = 10 * time.Second
	tTick = time.Millisecond
)

var (
	seedFlag = flag.Uint64("seed", 0, "seed of the random test; 0 takes one from the clock")
	opsFlag  = flag.Int("ops", 5000, "operations of the random test")
)

// model is what a store should hold, kept the plainest way.
type model struct {
	snaps map[string]map[string]*modelSnap // name, key
	trash map[ID]bool
}

type modelSnap struct {
	id     ID
	kind   snapshots.Kind
	parent string
	labels map[string]string
	device uint32 // or the project id
	usage  *snapshots.Usage
}

func (m *model) children(name, key string) int {
	n := 0
	for _, sn := range m.snaps[name] {
		if sn.parent == key {
			n++
		}
	}
	return n
}

// TestModel does random operations on a store and on the model, compares every answer, and now and then the whole, also
// after opening the store again.
func TestModel(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("run again with: go test ./metadata -run TestModel -seed %d -ops %d", seed, *opsFlag)
	r := &modelRun{
		rand:  rand.New(rand.NewPCG(seed, 1)),
		path:  filepath.Join(t.TempDir(), "lamina.db"),
		model: model{snaps: map[string]map[string]*modelSnap{"one": {}, "two": {}}, trash: map[ID]bool{}},
	}
	r.store = mustOpen(t, r.path)
	steps := []func(*testing.T){r.create, r.create, r.create, r.commit, r.commit, r.remove, r.remove, r.update, r.usage, r.forget, r.walk}
	for i := range *opsFlag {
		steps[r.rand.IntN(len(steps))](t)
		if i%500 == 499 {
			if r.rand.IntN(2) == 0 {
				require.NoError(t, r.store.Close())
				r.store = mustOpen(t, r.path)
			}
			r.compare(t)
			r.compareCounts(t)
			r.compareTrees(t)
		}
		if t.Failed() {
			t.Fatalf("at operation %d", i)
		}
	}
}

type modelRun struct {
	rand  *rand.Rand
	path  string
	store *Store
	model model
}

func (r *modelRun) name() string { return []string{"one", "two"}[r.rand.IntN(2)] }
func (r *modelRun) key() string  { return fmt.Sprintf("key-%d", r.rand.IntN(60)) }

// someKey is mostly one that exists.
func (r *modelRun) someKey(name string) string {
	keys := slices.Sorted(maps.Keys(r.model.snaps[name]))
	if len(keys) == 0 || r.rand.IntN(8) == 0 {
		return r.key()
	}
	return keys[r.rand.IntN(len(keys))]
}

func (r *modelRun) labels() map[string]string {
	l := map[string]string{}
	for range r.rand.IntN(3) {
		l[fmt.Sprintf("l%d", r.rand.IntN(3))] = []string{"", "x", "y"}[r.rand.IntN(3)]
	}
	if r.rand.IntN(2) == 0 {
		l[snapshots.LabelSnapshotRef] = fmt.Sprintf("ref-%d", r.rand.IntN(5))
	}
	return l
}

func (r *modelRun) create(t *testing.T) {
	t.Helper()
	name, key := r.name(), r.key()
	snaps := r.model.snaps[name]
	kind := []snapshots.Kind{snapshots.KindActive, snapshots.KindActive, snapshots.KindView}[r.rand.IntN(3)]
	sn := Snapshot{ID: r.store.ReserveID(), Name: name, Key: key, Kind: kind, Labels: r.labels()}
	if r.rand.IntN(3) > 0 {
		sn.Parent = r.someKey(name)
		if p, err := r.store.Get(name, sn.Parent); err == nil {
			sn.ParentID = p.ID
		}
	}
	if kind == snapshots.KindActive {
		var err error
		if r.rand.IntN(2) == 0 {
			sn.Placement.Medium = Volume
			sn.Placement.Device, err = r.store.ReserveDevice()
		} else {
			sn.Placement.Medium = Directory
			sn.Placement.Project, err = r.store.ReserveProject(1000, 2000)
		}
		require.NoError(t, err)
	}
	parent := snaps[sn.Parent]
	var want error
	switch {
	case sn.Parent != "" && parent == nil:
		want = ErrNotExist
	case sn.Parent != "" && parent.kind != snapshots.KindCommitted:
		want = ErrInvalid
	case snaps[key] != nil:
		want = ErrExist
	}
	err := r.store.Create(t.Context(), sn)
	require.ErrorIs(t, err, want)
	if err != nil {
		if sn.Placement.Medium == Volume {
			r.store.ReleaseDevice(sn.Placement.Device)
		}
		r.store.ReleaseProject(sn.Placement.Project)
		return
	}
	snaps[key] = &modelSnap{id: sn.ID, kind: kind, parent: sn.Parent, labels: withoutEmpty(sn.Labels), device: sn.Placement.Device + sn.Placement.Project}
}

func (r *modelRun) commit(t *testing.T) {
	t.Helper()
	name := r.name()
	key, newKey, o := r.someKey(name), r.key(), CommitOptions{Labels: r.labels()}
	if r.rand.IntN(3) == 0 {
		o.Parent = r.someKey(name)
	}
	snaps := r.model.snaps[name]
	sn := snaps[key]
	var want error
	switch {
	case snaps[newKey] != nil:
		want = ErrExist
	case sn == nil:
		want = ErrNotExist
	case sn.kind != snapshots.KindActive:
		want = ErrState
	case o.Parent != "" && sn.parent != "" && o.Parent != sn.parent:
		want = ErrInvalid
	case o.Parent != "" && snaps[o.Parent] == nil:
		want = ErrNotExist
	case o.Parent != "" && snaps[o.Parent].kind != snapshots.KindCommitted:
		want = ErrState
	}
	err := r.store.Commit(t.Context(), name, newKey, key, o)
	require.ErrorIs(t, err, want)
	if err != nil {
		return
	}
	delete(snaps, key)
	sn.kind, sn.labels, sn.usage = snapshots.KindCommitted, withoutEmpty(o.Labels), nil
	if o.Parent != "" {
		sn.parent = o.Parent
	}
	snaps[newKey] = sn
}

func (r *modelRun) remove(t *testing.T) {
	t.Helper()
	name := r.name()
	key := r.someKey(name)
	snaps := r.model.snaps[name]
	var want error
	switch {
	case snaps[key] == nil:
		want = ErrNotExist
	case r.model.children(name, key) > 0:
		want = ErrState
	}
	_, err := r.store.Remove(t.Context(), name, key)
	require.ErrorIs(t, err, want)
	if err != nil {
		return
	}
	if snaps[key].kind != snapshots.KindView {
		r.model.trash[snaps[key].id] = true
	}
	delete(snaps, key)
}

func (r *modelRun) update(t *testing.T) {
	t.Helper()
	name := r.name()
	key, given := r.someKey(name), r.labels()
	sn := r.model.snaps[name][key]
	paths := [][]string{nil, {"labels"}, {"labels.l1"}, {"labels.l1", "labels." + snapshots.LabelSnapshotRef}, {"kind"}}[r.rand.IntN(5)]
	var want error
	switch {
	case sn == nil:
		want = ErrNotExist
	case len(paths) > 0 && paths[0] == "kind":
		want = ErrInvalid
	}
	info := snapshots.Info{Name: key, Labels: given}
	_, next, err := r.store.Relabelled(name, info, paths...)
	require.ErrorIs(t, err, want)
	size := r.rand.Uint64N(1 << 40)
	got, err := r.store.UpdateSized(t.Context(), name, info, size, paths...)
	require.ErrorIs(t, err, want)
	if err != nil {
		return
	}
	require.Equal(t, next.Labels, got.Labels)
	require.Equal(t, size, got.Placement.Size)
	require.NoError(t, r.store.SetSize(t.Context(), sn.id, size+1))
	got, err = r.store.Update(t.Context(), name, info, paths...)
	require.NoError(t, err)
	require.Equal(t, size+1, got.Placement.Size)
	if len(paths) == 0 || paths[0] == "labels" {
		sn.labels = withoutEmpty(given)
	} else {
		merged := maps.Clone(sn.labels)
		if merged == nil {
			merged = map[string]string{}
		}
		for _, p := range paths {
			k := p[len("labels."):]
			merged[k] = given[k]
		}
		sn.labels = withoutEmpty(merged)
	}
	require.Equal(t, sn.labels, got.Labels)
}

func (r *modelRun) usage(t *testing.T) {
	t.Helper()
	name := r.name()
	sn := r.model.snaps[name][r.someKey(name)]
	if sn == nil {
		require.NoError(t, r.store.SetUsage(t.Context(), 1<<60, snapshots.Usage{}))
		return
	}
	sn.usage = &snapshots.Usage{Size: r.rand.Int64N(1 << 40), Inodes: r.rand.Int64N(100)}
	require.NoError(t, r.store.SetUsage(t.Context(), sn.id, *sn.usage))
}

func (r *modelRun) forget(t *testing.T) {
	t.Helper()
	trash, err := r.store.Trash(t.Context())
	require.NoError(t, err)
	trash = trash[:min(len(trash), 1+r.rand.IntN(20))]
	require.NoError(t, r.store.Forget(t.Context(), trash...))
	for _, link := range trash {
		require.True(t, r.model.trash[link.ID], "trash %d", link.ID)
		delete(r.model.trash, link.ID)
	}
}

// walk compares a filtered walk, which an index may answer, with a scan of the model.
func (r *modelRun) walk(t *testing.T) {
	t.Helper()
	name := r.name()
	ref, parent, key := fmt.Sprintf("ref-%d", r.rand.IntN(5)), r.someKey(name), r.someKey(name)
	byRef := fmt.Sprintf("labels.%q==%s", snapshots.LabelSnapshotRef, ref)
	hasRef := func(_ string, sn *modelSnap) bool { return sn.labels[snapshots.LabelSnapshotRef] == ref }
	hasParent := func(_ string, sn *modelSnap) bool { return sn.parent == parent }
	cases := []struct {
		filters []string
		want    func(string, *modelSnap) bool
	}{
		{nil, func(string, *modelSnap) bool { return true }},
		{[]string{byRef}, hasRef},
		{[]string{byRef + ",parent==" + parent}, func(k string, sn *modelSnap) bool { return hasRef(k, sn) && hasParent(k, sn) }},
		{[]string{"parent==" + parent}, hasParent},
		{[]string{"name==" + key}, func(k string, _ *modelSnap) bool { return k == key }},
		{[]string{"kind==view"}, func(_ string, sn *modelSnap) bool { return sn.kind == snapshots.KindView }},
		{[]string{byRef, "parent==" + parent}, func(k string, sn *modelSnap) bool { return hasRef(k, sn) || hasParent(k, sn) }},
		{[]string{"parent==" + parent, "labels.l1"}, func(k string, sn *modelSnap) bool { return hasParent(k, sn) || sn.labels["l1"] != "" }},
	}
	c := cases[r.rand.IntN(len(cases))]
	var got, want []string
	require.NoError(t, r.store.Walk(t.Context(), name, func(sn Snapshot) error {
		got = append(got, sn.Key)
		return nil
	}, c.filters...))
	for k, sn := range r.model.snaps[name] {
		if c.want(k, sn) {
			want = append(want, k)
		}
	}
	require.ElementsMatch(t, want, got, "%v", c.filters)
}

func (r *modelRun) compare(t *testing.T) {
	t.Helper()
	tCheck(t, r.store)
	for name, snaps := range r.model.snaps {
		for key, want := range snaps {
			got, chain, err := r.store.Chain(name, key)
			require.NoError(t, err)
			require.Equal(t, *want, modelSnap{got.ID, got.Kind, got.Parent, got.Labels, got.Placement.Device + got.Placement.Project, got.Usage})
			require.Equal(t, want.id, chain[0].ID)
			parent := want.parent
			for _, link := range chain[1:] {
				require.Equal(t, snaps[parent].id, link.ID)
				parent = snaps[parent].parent
			}
			require.Empty(t, parent)
		}
	}
	trash, err := r.store.Trash(t.Context())
	require.NoError(t, err)
	require.Len(t, trash, len(r.model.trash))
}

// StatInWalk: containerd calls the store within Walk, and others write meanwhile.
func TestWalkNests(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "lamina.db"))
	for i := range 50 {
		require.NoError(t, s.Create(t.Context(), Snapshot{ID: s.ReserveID(), Name: "n", Key: fmt.Sprint(i), Kind: snapshots.KindActive}))
	}
	seen := 0
	require.NoError(t, s.Walk(t.Context(), "n", func(sn Snapshot) error {
		seen++
		if _, err := s.Remove(t.Context(), "n", sn.Key); err != nil {
			return err
		}
		return s.Walk(t.Context(), "n", func(inner Snapshot) error {
			_, err := s.Get("n", inner.Key)
			return err
		})
	}))
	require.Equal(t, 50, seen)

	errStop := errors.New("stop")
	require.NoError(t, s.Create(t.Context(), Snapshot{ID: s.ReserveID(), Name: "n", Key: "k", Kind: snapshots.KindActive}))
	require.ErrorIs(t, s.Walk(t.Context(), "n", func(Snapshot) error { return errStop }), errStop)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, s.Walk(ctx, "n", func(Snapshot) error { return nil }), context.Canceled)
}
