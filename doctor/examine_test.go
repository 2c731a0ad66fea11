package doctor

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/dmthin"
	"github.com/lamina-snapshotter/lamina/metadata"
)

// fakeLive is a daemon that does what its fields say, and whose volumes are not to be looked at.
type fakeLive struct {
	broken error // of the volumes
	reaped func(context.Context) error
	survey *dmthin.Survey // nil for volumes that are not to be looked at
	spares map[uint64]bool
}

func (f fakeLive) Broken(medium metadata.Medium) error {
	if medium == metadata.Volume {
		return f.broken
	}
	return nil
}

func (f fakeLive) Made(ctx context.Context, medium metadata.Medium) error {
	if medium == metadata.Volume && f.broken == nil {
		<-ctx.Done()
	}
	return ctx.Err()
}
func (f fakeLive) Spares(metadata.Medium) map[uint64]bool              { return f.spares }
func (f fakeLive) Settled(ctx context.Context) error                   { return f.Made(ctx, metadata.Volume) }
func (f fakeLive) Reaped(ctx context.Context, _ metadata.Medium) error { return f.reaped(ctx) }
func (f fakeLive) Survey(context.Context) (*dmthin.Survey, error) {
	if f.survey == nil {
		return nil, errors.New("it hangs")
	}
	return f.survey, nil
}
func (f fakeLive) Alone(context.Context, metadata.ID, func(bool) error) error { return nil }
func (f fakeLive) SurveyDevice(_ context.Context, d dmthin.SurveyedDevice) (dmthin.SurveyedDevice, bool, error) {
	return d, false, nil
}

func (f fakeLive) VolumesUsage(context.Context) ([]dmthin.VolumeUsage, error) {
	return []dmthin.VolumeUsage{{ID: 1, Mapped: 30 << 20, Exclusive: 10 << 20}, {ID: 2, Mapped: 5 << 10, Exclusive: 5 << 10}, {ID: 77}}, nil
}

// The volumes are told with whose they are.
func TestUsages(t *testing.T) {
	s := newSubject(t)
	s.add("a", "", snapshots.KindActive, metadata.Volume)
	s.add("b", "", snapshots.KindActive, metadata.Volume)
	_, err := s.Store.Remove(t.Context(), "lamina", "b")
	require.NoError(t, err)
	s.Live = fakeLive{}
	var got []string
	require.NoError(t, Usages(t.Context(), s.Subject, func(u Usage) { got = append(got, u.String()) }))
	require.Equal(t, []string{
		"volume 1 (lamina, a): 30MiB mapped, 10MiB exclusive, 20MiB shared",
		"volume 2 (removed): 5KiB mapped, 5KiB exclusive, 0B shared",
		"volume 77 (of no snapshot): 0B mapped, 0B exclusive, 0B shared",
	}, got)
}

// A tSubject is a root with a store that a test fills.
type tSubject struct {
	Subject
	t *testing.T
}

func newSubject(t *testing.T) *tSubject {
	t.Helper()
	root := t.TempDir()
	store, err := metadata.Open(filepath.Join(root, "lamina.db"), metadata.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	s := Subject{Root: root, Store: store, UnionRoot: filepath.Join(root, "union"), Thin: dmthin.DefaultConfig()}
	s.Thin.Root, s.Thin.Store = filepath.Join(root, "thin"), store.UUID()
	return &tSubject{s, t}
}

// add records a snapshot; a view has no medium.
func (s *tSubject) add(key, parent string, kind snapshots.Kind, medium metadata.Medium) metadata.Snapshot {
	s.t.Helper()
	sn := metadata.Snapshot{ID: s.Store.ReserveID(), Name: "lamina", Key: key, Parent: parent, Kind: kind, Placement: metadata.Placement{Medium: medium}}
	if parent != "" {
		p, err := s.Store.Get("lamina", parent)
		require.NoError(s.t, err)
		sn.ParentID = p.ID
	}
	if medium == metadata.Volume {
		device, err := s.Store.ReserveDevice()
		require.NoError(s.t, err)
		sn.Placement.Device, sn.Placement.Whole, sn.Placement.Size = device, true, 1<<30
	}
	if kind == snapshots.KindCommitted {
		sn.Kind, sn.Key = snapshots.KindActive, key+"-"
	}
	require.NoError(s.t, s.Store.Create(s.t.Context(), sn))
	if kind == snapshots.KindCommitted {
		require.NoError(s.t, s.Store.Commit(s.t.Context(), "lamina", key, sn.Key, metadata.CommitOptions{}))
	}
	return sn
}

func (s *tSubject) keys() (keys []string) {
	s.t.Helper()
	require.NoError(s.t, s.Store.Walk(s.t.Context(), "lamina", func(sn metadata.Snapshot) error {
		keys = append(keys, sn.Key)
		return nil
	}))
	return keys
}

func codesOf(found []Finding) (codes []Code) {
	for _, f := range found {
		codes = append(codes, f.Code)
	}
	return codes
}

// What a daemon has in its trash is told with who uses it, though the daemon takes that for no failure.
func TestTrashOfDaemon(t *testing.T) {
	s := newSubject(t)
	s.add("a", "", snapshots.KindActive, metadata.Directory)
	s.add("b", "", snapshots.KindActive, metadata.Directory)
	used := ""
	s.HoldersOfDirectory = func(_ context.Context, dir string) ([]string, error) {
		if dir == used {
			return []string{"process 1"}, nil
		}
		return nil, nil
	}
	var ids []metadata.ID
	for _, key := range []string{"a", "b"} {
		sn, err := s.Store.Remove(t.Context(), "lamina", key)
		require.NoError(t, err)
		ids = append(ids, sn.ID)
	}
	look := func(reaped func(context.Context) error) (found []Finding) {
		s.Live = fakeLive{reaped: reaped}
		e := &examination{Subject: s.Subject, found: func(f Finding) { found = append(found, f) }}
		require.NoError(t, e.store(t.Context()))
		require.NoError(t, e.trash(t.Context()))
		return found
	}
	found := look(func(ctx context.Context) error {
		return s.Store.Forget(ctx, metadata.Link{ID: ids[0], Placement: metadata.Placement{Medium: metadata.Directory}})
	})
	require.Equal(t, []Code{TrashWaiting}, codesOf(found), "of what is in use")

	e := &examination{Subject: s.Subject}
	used = e.directory(uint64(ids[1]))
	found = look(func(context.Context) error { return errors.New("a disk") })
	require.Equal(t, []Code{TrashWaiting}, codesOf(found))
	require.Equal(t, []string{"process 1"}, found[0].Holders)
	require.True(t, found[0].Note)

	used = ""
	found = look(func(context.Context) error { return errors.New("a disk") })
	require.Equal(t, []Code{TrashStuck}, codesOf(found))
	require.Contains(t, found[0].What, "a disk")
	require.False(t, found[0].Note)

	found = look(func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
	require.Equal(t, []Code{TrashWaiting}, codesOf(found), "a deletion that hangs")
	require.Contains(t, found[0].What, "within 5s")
}

// Directories are looked at though the volumes hang.
func TestUnionBesideHungVolumes(t *testing.T) {
	s := newSubject(t)
	lost := s.add("a", "", snapshots.KindCommitted, metadata.Directory)
	s.add("v", "", snapshots.KindCommitted, metadata.Volume)
	s.Live = fakeLive{}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	e := &examination{Subject: s.Subject, found: func(Finding) {}}
	require.NoError(t, e.store(ctx))
	now, err := e.again(ctx, metadata.Directory)
	require.NoError(t, err)
	require.Contains(t, now.directories, uint64(lost.ID))
	bounded, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err = e.again(bounded, metadata.Volume)
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

// What a comparison has made for itself is not surplus, as long as the comparison takes.
func TestSpareVolume(t *testing.T) {
	for _, under := range []bool{true, false} {
		live := fakeLive{survey: &dmthin.Survey{Volumes: []dmthin.SurveyedVolume{{ID: 7, Created: 3}}}, spares: map[uint64]bool{7: under}}
		var found []Finding
		e := &examination{Subject: Subject{Live: live}, found: func(f Finding) { found = append(found, f) }}
		require.NoError(t, e.surplusVolumes(t.Context(), live.survey.Volumes))
		require.Equal(t, under, len(found) == 0, "%v", found)
	}
}

// A pool that the daemon has set aside is told with the reason, and looked at all the same.
func TestPoolSetAside(t *testing.T) {
	s := newSubject(t)
	s.Volumes = true
	s.add("v", "", snapshots.KindCommitted, metadata.Volume)
	s.Live = fakeLive{broken: errors.New("needs a check")}
	var found []Finding
	require.NoError(t, Examine(t.Context(), s.Subject, func(f Finding) { found = append(found, f) }))
	require.Equal(t, []Code{PlaceEmpty, PoolState}, codesOf(found))
	require.Contains(t, found[1].What, "needs a check")
}

// Full metadata are no damage, and a pool that takes no changes for another reason is.
func TestStateOfPool(t *testing.T) {
	full := dmthin.Fill{Used: 80, Total: 100}
	for _, tc := range []struct {
		pool dmthin.SurveyedPool
		want []Code
	}{
		{dmthin.SurveyedPool{Mode: "rw", Writable: true}, nil},
		{dmthin.SurveyedPool{Mode: "ro", MetadataFull: true, Metadata: full}, []Code{PoolFull}},
		{dmthin.SurveyedPool{Mode: "ro", NeedsCheck: true}, []Code{PoolState}},
		{dmthin.SurveyedPool{Mode: "Fail"}, []Code{PoolState}},
	} {
		var found []Finding
		e := &examination{Subject: Subject{Live: fakeLive{}}, found: func(f Finding) { found = append(found, f) }}
		tc.pool.Made, tc.pool.Running = true, true
		e.pool(&dmthin.Survey{Pool: tc.pool})
		require.Equal(t, tc.want, codesOf(found), tc.pool)
	}
}

// A loop device of a deleted file is taken away if the file is there anew, and left to the user if it is the last copy.
func TestLoopOfDeletedFile(t *testing.T) {
	var found []Finding
	e := &examination{found: func(f Finding) { found = append(found, f) }}
	e.loops(&dmthin.Survey{Loops: []dmthin.SurveyedLoop{{Path: "a", Deleted: true}, {Path: "b", Deleted: true, Nameless: true}}})
	require.Equal(t, []Code{LoopDeleted, LoopDeleted}, codesOf(found))
	require.Equal(t, ByRepair, found[0].Cure)
	require.NotNil(t, found[0].cure)
	require.Equal(t, ByHand, found[1].Cure)
	require.Nil(t, found[1].cure)
}

// A place that has lost its owner, and is not empty, is told.
func TestPlaceOfNobody(t *testing.T) {
	for _, known := range []int{0, 3} {
		var found []Finding
		e := &examination{found: func(f Finding) { found = append(found, f) }}
		require.False(t, e.place("thin", "", 0, false, known))
		require.Equal(t, []Code{PlaceEmpty}, codesOf(found))
	}
}

// A volume that the disk does not give is no reason to remove the snapshot, and one that was never a file system is.
func TestUnreadVolume(t *testing.T) {
	s := newSubject(t)
	sn := s.add("v", "", snapshots.KindCommitted, metadata.Volume)
	var found []Finding
	e := &examination{Subject: s.Subject, found: func(f Finding) { found = append(found, f) }}
	e.filesystem(dmthin.SurveyedVolume{FSProblem: errors.New("x"), Unreadable: true}, sn.Link())
	e.filesystem(dmthin.SurveyedVolume{FSProblem: errors.New("x")}, sn.Link())
	require.Equal(t, []Code{FilesystemUnread, FilesystemUnknown}, codesOf(found))
	require.Equal(t, ByHand, found[0].Cure)
	require.Equal(t, ByRemoval, found[1].Cure)
}

// Of lost volumes nothing is removed that something sound is upon; a view has nothing of its own.
func TestRemoveLostVolumes(t *testing.T) {
	s := newSubject(t)
	lost := map[string]metadata.Snapshot{}
	lost["base"] = s.add("base", "", snapshots.KindCommitted, metadata.Volume)
	s.add("sound", "base", snapshots.KindCommitted, metadata.Volume)
	lost["leaf"] = s.add("leaf", "sound", snapshots.KindCommitted, metadata.Volume)
	s.add("view", "leaf", snapshots.KindView, metadata.NoMedium)
	lost["alone"] = s.add("alone", "", snapshots.KindCommitted, metadata.Volume)
	lost["upon"] = s.add("upon", "alone", snapshots.KindActive, metadata.Volume)
	lost["dir"] = s.add("dir", "", snapshots.KindCommitted, metadata.Directory)
	s.add("dir2", "dir", snapshots.KindCommitted, metadata.Directory)
	var said []string
	r := Repair{
		RemoveLost: true,
		Say:        func(text string) { said = append(said, text) },
		Ask:        func(string) (bool, error) { return true, nil },
		Unlock:     s.Store.Close,
		Open: func() (*metadata.Store, error) {
			return metadata.Open(filepath.Join(s.Root, "lamina.db"), metadata.Options{})
		},
		Start: func(context.Context, [][2]string) error { return nil },
	}
	for _, key := range []string{"base", "leaf", "alone", "upon", "dir"} {
		f := finding(ContentLost, key, "gone")
		f.ID, f.Snapshotter, f.Key = lost[key].ID, "lamina", key
		r.Findings = append(r.Findings, f)
	}
	require.NoError(t, r.Run(t.Context()))
	store, err := r.Open()
	require.NoError(t, err)
	s.Store = store
	require.ElementsMatch(t, []string{"base", "sound"}, s.keys(), strings.Join(said, "\n"))
	require.Contains(t, strings.Join(said, "\n"), `base: left to you: upon "base" of lamina are snapshots that can be used: "sound"`)
	require.NoError(t, store.Close())
}

// A look that hangs is left behind.
func TestUnhung(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	reason := errors.New("the disk hangs")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 10*time.Millisecond, reason)
	defer cancel()
	_, err := unhung(ctx, func() (int, error) { <-release; return 1, nil })
	require.ErrorIs(t, err, reason)
	n, err := unhung(t.Context(), func() (int, error) { return 1, nil })
	require.NoError(t, err)
	require.Equal(t, 1, n)
}

// A volume that becomes larger while it is looked at is no finding, nor is one that was to and did not.
func TestVolumeGrowsMeanwhile(t *testing.T) {
	s := newSubject(t)
	sn := s.add("v", "", snapshots.KindActive, metadata.Volume)
	for size, want := range map[uint64][]Code{2 << 30: nil, 3 << 30: {FilesystemSize}} {
		require.NoError(t, s.Store.SetSize(t.Context(), sn.ID, 1<<30))
		var found []Finding
		e := &examination{Subject: s.Subject, found: func(f Finding) { found = append(found, f) }}
		require.NoError(t, e.store(t.Context()))
		require.NoError(t, s.Store.SetSize(t.Context(), sn.ID, 2<<30))
		survey := &dmthin.Survey{Volumes: []dmthin.SurveyedVolume{{ID: sn.Placement.Device, FS: "ext4", FSSize: size}}}
		require.NoError(t, e.volumes(t.Context(), survey, e.first))
		require.Equal(t, want, codesOf(found))
	}
	for size, want := range map[uint64]Code{1 << 29: "", 1 << 30: "", 2 << 30: DeviceTable} {
		require.Equal(t, want, wrong(dmthin.SurveyedDevice{Role: dmthin.VolumeDevice, Size: size}, sn.Link(), true))
	}
}
