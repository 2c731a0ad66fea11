package metadata

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"
)

// sampleStore returns the bytes of a store with something in each bucket.
func sampleStore(t *testing.T) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "lamina.db")
	s := mustOpen(t, path)
	ctx := t.Context()
	parent := Snapshot{}
	for i := range 60 {
		sn := Snapshot{
			ID: s.ReserveID(), Name: "lamina", Key: fmt.Sprint("key-", i), Kind: snapshots.KindActive,
			Parent: parent.Key, ParentID: parent.ID, Placement: Placement{Medium: Directory},
			Labels: map[string]string{snapshots.LabelSnapshotRef: fmt.Sprint("ref-", i), "other": "label"},
		}
		if i%2 == 0 {
			dev, err := s.ReserveDevice()
			require.NoError(t, err)
			sn.Placement = Placement{Medium: Volume, Whole: true, Device: dev, Size: 10 << 30}
		}
		require.NoError(t, s.Create(ctx, sn))
		switch i % 5 {
		case 0:
			_, err := s.Remove(ctx, "lamina", sn.Key)
			require.NoError(t, err)
		case 1, 2, 3:
			sn.Key += "-committed"
			require.NoError(t, s.Commit(ctx, "lamina", sn.Key, fmt.Sprint("key-", i), CommitOptions{Usage: &snapshots.Usage{Size: 7}}))
			parent = sn
		}
	}
	_, err := s.Start(ctx)
	require.NoError(t, err)
	require.NoError(t, s.Close())
	good, err := os.ReadFile(path)
	require.NoError(t, err)
	return good
}

// dump returns all that a store says.
func dump(s *Store) (all []string, err error) {
	say := func(v any) { all = append(all, fmt.Sprintf("%+v", v)) }
	starts, err := s.Starts()
	if err != nil {
		return nil, err
	}
	say(s.UUID())
	say(starts)
	if err := s.Walk(context.Background(), "lamina", func(sn Snapshot) error {
		if sn.Usage != nil {
			say(*sn.Usage)
			sn.Usage = nil
		}
		say(sn)
		return nil
	}); err != nil {
		return nil, err
	}
	trash, err := s.Trash(context.Background())
	say(trash)
	return all, err
}

// A store of which a byte is not what was written is refused and stays as it is, or
// shows what it showed: the byte was in no use.
func TestFlippedBits(t *testing.T) {
	good := sampleStore(t)
	path := filepath.Join(t.TempDir(), "lamina.db")
	require.NoError(t, os.WriteFile(path, good, 0o600))
	s, err := Open(path, Options{ReadOnly: true})
	require.NoError(t, err)
	want, err := dump(s)
	require.NoError(t, err)
	require.NoError(t, s.Close())

	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	refused, harmless := 0, 0
	bad := map[int]int{}
	page := os.Getpagesize()
	for at := 0; at < len(good); at += 1 + rng.IntN(7) {
		damaged := append([]byte(nil), good...)
		damaged[at] ^= 1 << rng.IntN(8)
		require.NoError(t, os.WriteFile(path, damaged, 0o600))
		s, err := Open(path, Options{ReadOnly: true})
		if err != nil {
			require.ErrorIs(t, err, ErrNotStore)
			refused++
			continue
		}
		got, err := dump(s)
		require.NoError(t, s.Close())
		if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
			bad[at/page]++
		} else {
			harmless++
		}
	}
	t.Logf("%d flips refused, %d harmless, undetected %v of %d pages", refused, harmless, bad, len(good)/page)
}
