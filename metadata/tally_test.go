package metadata

import (
	"errors"
	"maps"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
)

// compareCounts wants the counts that were kept to be those of the model, and those of a pass through the file.
func (r *modelRun) compareCounts(t *testing.T) {
	t.Helper()
	want := map[string]Kinds{}
	for name, snaps := range r.model.snaps {
		var kinds Kinds
		for _, sn := range snaps {
			*kinds.of(sn.kind)++
		}
		if len(snaps) > 0 {
			want[name] = kinds
		}
	}
	got := r.store.Counts()
	require.Equal(t, want, got.Names)
	require.Equal(t, len(r.model.trash), got.Trash[Directory]+got.Trash[Volume])
	requireCounted(t, r.store)
}

// requireCounted wants the counts to be what a pass through the file finds.
func requireCounted(t *testing.T, s *Store) {
	t.Helper()
	var fresh tally
	require.NoError(t, s.view(fresh.load))
	got := s.Counts()
	for _, counts := range []map[Medium]int{got.Contents, got.Trash, fresh.all.Contents, fresh.all.Trash} {
		maps.DeleteFunc(counts, func(_ Medium, n int) bool { return n == 0 })
	}
	require.Equal(t, fresh.all, got)
}

// compareTrees wants each snapshot of the model once, and behind its parent.
func (r *modelRun) compareTrees(t *testing.T) {
	t.Helper()
	seen := map[string]map[string]ID{"one": {}, "two": {}}
	latest := map[string]ID{} // of the children of a snapshot
	require.NoError(t, r.store.WalkTrees(t.Context(), func(sn Snapshot) error {
		want := r.model.snaps[sn.Name][sn.Key]
		require.NotNil(t, want, "%s, %s", sn.Name, sn.Key)
		require.Equal(t, want.id, sn.ID)
		require.Equal(t, want.parent, sn.Parent)
		require.Zero(t, seen[sn.Name][sn.Key], "it comes twice")
		require.Equal(t, sn.ParentID, seen[sn.Name][sn.Parent])
		require.Greater(t, sn.ID, latest[sn.Name+sn.Parent], "siblings by id")
		latest[sn.Name+sn.Parent] = sn.ID
		seen[sn.Name][sn.Key] = sn.ID
		return nil
	}))
	for name, snaps := range r.model.snaps {
		require.Len(t, seen[name], len(snaps))
		for key, sn := range snaps {
			r.compareFamily(t, name, key, sn)
		}
	}
}

func (r *modelRun) compareFamily(t *testing.T, name, key string, want *modelSnap) {
	t.Helper()
	sn, parents, children, err := r.store.Family(name, key)
	require.NoError(t, err)
	require.Equal(t, want.id, sn.ID)
	for _, p := range parents {
		require.Equal(t, want.parent, p.Key)
		want = r.model.snaps[name][p.Key]
	}
	require.Empty(t, want.parent)
	require.Len(t, children, r.model.children(name, key))
	for _, c := range children {
		require.Equal(t, key, r.model.snaps[name][c.Key].parent)
	}
}

// What fails is not counted, also in a group of writes of which one is undone.
func TestCountsOfWhatFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lamina.db")
	s := mustOpen(t, path)
	create := func(tx *tx, key string) error {
		return tx.insert(Snapshot{ID: s.ReserveID(), Name: "one", Key: key, Kind: snapshots.KindActive, Placement: Placement{Medium: Directory}})
	}
	spoilt := errors.New("spoilt")
	ok := &write{fn: func(tx *tx) error { return create(tx, "kept") }}
	bad := &write{fn: func(tx *tx) error { return errors.Join(create(tx, "undone"), spoilt) }}
	refused := &write{fn: func(*tx) error { return spoilt }}
	require.NoError(t, s.batch.commit([]*write{refused, ok, bad}))
	require.NoError(t, ok.err)
	require.ErrorIs(t, bad.err, spoilt)
	require.Equal(t, map[string]Kinds{"one": {Active: 1}}, s.Counts().Names)
	requireCounted(t, s)
	require.ErrorIs(t, refused.err, spoilt)
	require.EqualValues(t, 1, s.Stats().Commits)
	require.EqualValues(t, 1, s.Stats().Writes, "what was refused is none")
	require.EqualValues(t, 1, s.Stats().Batch.Counts[0])

	s.batch.commitTx = func(btx *bolt.Tx) error { return errors.Join(spoilt, btx.Rollback()) }
	require.ErrorIs(t, s.batch.commit([]*write{{fn: func(tx *tx) error { return create(tx, "lost") }}}), nil)
	requireCounted(t, s)
	require.EqualValues(t, 1, s.Stats().Commits)
}

// A store that is opened to be read counts what it finds, and knows its version.
func TestCountsOfReader(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lamina.db")
	s := mustOpen(t, path)
	for i, key := range []string{"a", "b"} {
		require.NoError(t, s.Create(t.Context(), Snapshot{ID: ID(i + 1), Name: "one", Key: key, Kind: snapshots.KindActive, Placement: Placement{Medium: Directory}}))
	}
	_, err := s.Remove(t.Context(), "one", "b")
	require.NoError(t, err)
	require.NoError(t, s.Close())
	reader, err := Open(path, Options{ReadOnly: true})
	require.NoError(t, err)
	defer reader.Close()
	require.Equal(t, Counts{
		Names:    map[string]Kinds{"one": {Active: 1}},
		Contents: map[Medium]int{Directory: 1},
		Trash:    map[Medium]int{Directory: 1},
	}, reader.Counts())
	require.Equal(t, schemaVersion, reader.Schema())
}
