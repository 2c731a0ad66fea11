package lamina

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"github.com/lamina-snapshotter/lamina/doctor"
	"github.com/lamina-snapshotter/lamina/metadata"
)

// A write of the store that was cut off is undone by a repair only if that is wanted.
func TestRepairAsksBeforeItUndoes(t *testing.T) {
	c := tConfig(t)
	require.NoError(t, os.MkdirAll(c.Root, 0o700))
	path := filepath.Join(c.Root, "lamina.db")
	store, err := metadata.Open(path, metadata.Options{})
	require.NoError(t, err)
	require.NoError(t, store.Close())
	db, err := bolt.Open(path, 0o600, &bolt.Options{NoFreelistSync: true})
	require.NoError(t, err)
	require.NoError(t, errors.Join(db.Update(func(*bolt.Tx) error { return nil }), db.Close())) // without a stamp
	cut, err := os.ReadFile(path)
	require.NoError(t, err)
	var said []string
	r := doctor.Repair{
		Say: func(text string) { said = append(said, text) },
		Ask: func(string) (bool, error) { return false, nil },
	}
	require.ErrorIs(t, Repair(t.Context(), c, r), metadata.ErrCutOff)
	require.Len(t, said, 1)
	require.Contains(t, said[0], "undo the last write of the store")
	after, err := os.ReadFile(path)
	require.NoError(t, err)
	require.True(t, bytes.Equal(cut, after), "it was changed")
	r.Ask = func(string) (bool, error) { return true, nil }
	require.NotErrorIs(t, Repair(t.Context(), c, r), metadata.ErrCutOff)
	store, err = metadata.Open(path, metadata.Options{ReadOnly: true})
	require.NoError(t, err)
	require.NoError(t, store.Close())
}
