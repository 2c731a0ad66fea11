package metadata

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
)

// holdings are what testdata/schemas/make.go wrote of a store.
type holdings struct {
	UUID      string
	Starts    uint64
	Answered  map[string]uint64
	Snapshots []Snapshot
	Trash     []Link
}

func holdingsOf(t *testing.T, s *Store) (d holdings) {
	t.Helper()
	var err error
	d.UUID = s.UUID()
	d.Starts, err = s.Starts()
	require.NoError(t, err)
	d.Answered = make(map[string]uint64)
	for _, m := range []Medium{Directory, Volume} {
		d.Answered[m.String()], err = s.LastAnswered(m)
		require.NoError(t, err)
	}
	for _, name := range []string{"lamina", "another name", Templates} {
		require.NoError(t, s.Walk(t.Context(), name, func(sn Snapshot) error {
			d.Snapshots = append(d.Snapshots, sn)
			return nil
		}))
	}
	d.Trash, err = s.Trash(t.Context())
	require.NoError(t, err)
	return d
}

// tSchema returns the path of a copy of the store that the code of a schema has written, and what that said of it.
func tSchema(t *testing.T, version int) (path string, want holdings) {
	t.Helper()
	packed, err := os.Open(fmt.Sprintf("testdata/schemas/%d.db.gz", version))
	require.NoError(t, err, "each schema from the oldest on needs a store of its own: see testdata/schemas/make")
	defer packed.Close()
	in, err := gzip.NewReader(packed)
	require.NoError(t, err)
	path = filepath.Join(t.TempDir(), "lamina.db")
	out, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	require.NoError(t, err)
	_, err = io.Copy(out, in)
	require.NoError(t, errors.Join(err, out.Close()))

	text, err := os.ReadFile(fmt.Sprintf("testdata/schemas/%d.json", version))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &want))
	return path, want
}

// A store that any schema's code has written is read as it is, becomes one of the newest schema with all that it holds, and can be used up.
func TestSchemas(t *testing.T) {
	for version := oldestVersion; version <= schemaVersion; version++ {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			path, want := tSchema(t, version)
			require.Len(t, want.Snapshots, 37)
			require.Len(t, want.Trash, 5)

			before, err := os.ReadFile(path)
			require.NoError(t, err)
			s, err := Open(path, Options{ReadOnly: true})
			require.NoError(t, err)
			require.EqualValues(t, version, versionOf(t, s))
			require.Equal(t, want, holdingsOf(t, s))
			require.NoError(t, s.Close())
			after, err := os.ReadFile(path)
			require.NoError(t, err)
			require.Equal(t, before, after, "a read changed the file")

			for range 2 { // as it becomes, and as it is then
				s, err = Open(path, Options{})
				require.NoError(t, err)
				require.EqualValues(t, schemaVersion, versionOf(t, s))
				require.Equal(t, want, holdingsOf(t, s))
				checkClean(t, s)
				require.NoError(t, s.Close())
			}
			s, err = Open(path, Options{})
			require.NoError(t, err)
			useUp(t, s, want)
			require.NoError(t, s.Close())
		})
	}
}

// useUp removes all that a store holds, and begins anew.
func useUp(t *testing.T, s *Store, d holdings) {
	t.Helper()
	for left := d.Snapshots; len(left) > 0; {
		var parents []Snapshot
		for _, sn := range left {
			_, err := s.Remove(t.Context(), sn.Name, sn.Key)
			if errors.Is(err, ErrState) {
				parents = append(parents, sn)
				continue
			}
			require.NoError(t, err)
		}
		require.Less(t, len(parents), len(left), "none can be removed")
		left = parents
	}
	trash, err := s.Trash(t.Context())
	require.NoError(t, err)
	require.Len(t, trash, len(d.Snapshots)-2+len(d.Trash)) // the views have no content
	require.NoError(t, s.Forget(t.Context(), trash...))
	id := s.ReserveID()
	for _, sn := range d.Snapshots {
		require.Greater(t, id, sn.ID)
	}
	require.NoError(t, s.Create(t.Context(), Snapshot{
		ID: id, Name: "lamina", Key: "new", Kind: snapshots.KindActive, Placement: Placement{Medium: Directory, Project: 7},
	}))
	checkClean(t, s)
}

func checkClean(t *testing.T, s *Store) {
	t.Helper()
	for problem, err := range s.Check(t.Context()) {
		require.NoError(t, err)
		t.Error(problem)
	}
}

// A store of a later program is refused with a sentence that says what to do, and stays as it is.
func TestNewerSchema(t *testing.T) {
	path, _ := tSchema(t, schemaVersion)
	bbolt(t, path, func(btx *bolt.Tx) error { return setVersion(btx, schemaVersion+1) })
	before, err := os.ReadFile(path)
	require.NoError(t, err)
	for _, o := range []Options{{ReadOnly: true}, {}} {
		_, err := Open(path, o)
		require.ErrorIs(t, err, ErrVersion)
		require.EqualError(t, err, fmt.Sprintf("open store %s: unknown schema version %d; this program knows %d to %d: install the lamina that wrote it, or a later one",
			path, schemaVersion+1, oldestVersion, schemaVersion))
	}
	after, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, before, after)
}
