package metadata

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
)

// variedStore returns the bytes of a store in which all that an agreement looks at is there.
func variedStore(t *testing.T) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "lamina.db")
	s := mustOpen(t, path)
	ctx := t.Context()
	template := volumeRecord(t, s, Templates, "ext4", snapshots.KindCommitted)
	require.NoError(t, s.Create(ctx, template))
	for _, name := range []string{"a", "b"} {
		base := volumeRecord(t, s, name, "base", snapshots.KindActive)
		base.ParentID = template.ID
		require.NoError(t, s.Create(ctx, base))
		require.NoError(t, s.Commit(ctx, name, "layer", "base", CommitOptions{}))
		layer, err := s.Get(name, "layer")
		require.NoError(t, err)
		for i := range 4 {
			project, err := s.ReserveProject(100, 200)
			require.NoError(t, err)
			upon := Snapshot{
				ID: s.ReserveID(), Name: name, Key: fmt.Sprint("active-", i), Kind: snapshots.KindActive,
				Parent: layer.Key, ParentID: layer.ID, Placement: Placement{Medium: Directory, Project: project},
				Labels: map[string]string{snapshots.LabelSnapshotRef: fmt.Sprint("ref-", i), "other": "label"},
			}
			require.NoError(t, s.Create(ctx, upon))
			view := Snapshot{ID: s.ReserveID(), Name: name, Key: fmt.Sprint("view-", i), Kind: snapshots.KindView, Parent: layer.Key, ParentID: layer.ID}
			require.NoError(t, s.Create(ctx, view))
		}
		_, err = s.Remove(ctx, name, "active-3")
		require.NoError(t, err)
		require.NoError(t, s.Create(ctx, volumeRecord(t, s, name, "gone", snapshots.KindActive)))
		_, err = s.Remove(ctx, name, "gone")
		require.NoError(t, err)
	}
	require.NoError(t, s.Close())
	return fileOf(t, path)
}

// entries returns what a bucket holds.
func entries(btx *bolt.Tx, bucket []byte) (all [][2][]byte) {
	_ = btx.Bucket(bucket).ForEach(func(k, v []byte) error {
		all = append(all, [2][]byte{slices.Clone(k), slices.Clone(v)})
		return nil
	})
	return all
}

// forgeAny changes something in a store, as a mistake in this package could, and says what.
func forgeAny(f forger, rng *rand.Rand) (what string, err error) {
	bucket := [][]byte{bucketKeys, bucketRecords, bucketChildren, bucketLabels, bucketDevices, bucketTrash}[rng.IntN(6)]
	all := entries(f.Tx, bucket)
	one, other := all[rng.IntN(len(all))], all[rng.IntN(len(all))]
	records := entries(f.Tx, bucketRecords)
	id, _ := parseKey8(records[rng.IntN(len(records))][0])
	otherID, _ := parseKey8(records[rng.IntN(len(records))][0])
	stray := otherID + ID(rng.IntN(3)) - 1
	change := func(what string, fn func(*Snapshot)) (string, error) {
		return fmt.Sprintf("%s of %d", what, id), f.change(id, fn)
	}
	switch rng.IntN(15) {
	case 0:
		return fmt.Sprintf("%s without %x", bucket, one[0]), f.Bucket(bucket).Delete(one[0])
	case 1:
		return fmt.Sprintf("%s: %x leads to what %x does", bucket, one[0], other[0]), f.Bucket(bucket).Put(one[0], other[1])
	case 2:
		one[0][rng.IntN(len(one[0]))] ^= 1 << rng.IntN(8)
		return fmt.Sprintf("%s with %x", bucket, one[0]), f.Bucket(bucket).Put(one[0], one[1])
	case 3:
		return change("the kind", func(sn *Snapshot) { sn.Kind = snapshots.Kind(rng.IntN(4)) })
	case 4:
		return change("the parent id", func(sn *Snapshot) { sn.ParentID = stray })
	case 5:
		of, err := record(f.Tx, otherID)
		if err != nil {
			return "", err
		}
		return change("the parent", func(sn *Snapshot) { sn.Parent, sn.ParentID = of.Key, otherID })
	case 6:
		return change("the parent's name", func(sn *Snapshot) { sn.Parent = []string{"", "layer", "base", "view-0"}[rng.IntN(4)] })
	case 7:
		return change("the device", func(sn *Snapshot) { sn.Placement.Device += uint32(rng.IntN(3)) - 1 })
	case 8:
		return change("the medium", func(sn *Snapshot) { sn.Placement.Medium = Medium(rng.IntN(3)) })
	case 9:
		return change("the project", func(sn *Snapshot) { sn.Placement.Project = uint32(100 + rng.IntN(10)) })
	case 10:
		return change("a label", func(sn *Snapshot) {
			sn.Labels = map[string]string{[]string{snapshots.LabelSnapshotRef, "other"}[rng.IntN(2)]: fmt.Sprint("ref-", rng.IntN(5))}
		})
	case 11:
		return change("the name", func(sn *Snapshot) { sn.Name = []string{"a", "b", Templates, "a\x00layer"}[rng.IntN(4)] })
	case 12:
		sequence := f.Bucket(bucketRecords).Sequence() - uint64(rng.IntN(4))
		return fmt.Sprint("the sequence ", sequence), f.Bucket(bucketRecords).SetSequence(sequence)
	case 13: // the same bytes, of an entry with a longer key
		if len(one[1]) == 0 {
			return "nothing", nil
		}
		return fmt.Sprintf("%s: %x with a byte of its value", bucket, one[0]), errors.Join(
			f.Bucket(bucket).Delete(one[0]), f.Bucket(bucket).Put(append(one[0], one[1][0]), one[1][1:]))
	default:
		link := Link{ID: stray, Placement: Placement{Medium: Medium(rng.IntN(3)), Project: uint32(rng.IntN(2) * (100 + rng.IntN(10)))}}
		return fmt.Sprintf("trash %+v", link), f.Bucket(bucketTrash).Put(key8(uint64(link.ID)), link.encode())
	}
}

// A start asks Check only where there is no agreement: so there may be none where Check finds something, and there should be one elsewhere,
// or each start pays for it.
func TestAgreementIsCheck(t *testing.T) {
	stores := [][]byte{variedStore(t), sampleStore(t)}
	path := filepath.Join(t.TempDir(), "lamina.db")
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	agreed := func(forge func(*bolt.Tx) error) (bool, error) {
		db, err := bolt.Open(path, 0o600, &bolt.Options{NoSync: true})
		require.NoError(t, err)
		require.NoError(t, errors.Join(db.Update(forge), db.Close()))
		file, err := os.Open(path)
		require.NoError(t, err)
		defer file.Close()
		st, err := file.Stat()
		require.NoError(t, err)
		judged, err := judge(file, uint64(st.Size()))
		require.NoError(t, err)
		require.Nil(t, judged.cutOff)
		db, err = openBoltOnce(path, true)
		require.NoError(t, err)
		err = guardFaults(func() error { return db.View(checkAll) })
		require.NoError(t, db.Close())
		return judged.agrees, err
	}
	for i, good := range stores {
		require.NoError(t, os.WriteFile(path, good, 0o600))
		agrees, problem := agreed(func(*bolt.Tx) error { return nil })
		require.NoError(t, problem)
		require.True(t, agrees, "store %d", i)
	}
	for _, what := range slices.Sorted(maps.Keys(forgeries)) {
		if what == "a uuid that is a path" || what == "starts that end" || what == "a value for a bucket" {
			continue // of the bucket meta, which verifyMeta looks at
		}
		require.NoError(t, os.WriteFile(path, stores[1], 0o600))
		agrees, problem := agreed(func(btx *bolt.Tx) error { return forgeries[what](forger{btx}) })
		require.Error(t, problem, what)
		require.False(t, agrees, what)
	}
	sound := 0
	for range 2000 {
		require.NoError(t, os.WriteFile(path, stores[0], 0o600))
		var what string
		agrees, problem := agreed(func(btx *bolt.Tx) (err error) {
			what, err = forgeAny(forger{btx}, rng)
			return err
		})
		require.Equal(t, problem == nil, agrees, "%s: %v", what, problem)
		if agrees {
			sound++
		}
	}
	t.Logf("%d of 2000 changes left nothing wrong", sound)
	require.Less(t, sound, 1000)
}

// A chain ends, and has no more snapshots than a read of it takes.
func TestAgreementOfChains(t *testing.T) {
	for _, length := range []int{1, 2, MaxChain, MaxChain + 1} {
		a := newAgreement()
		for id := range ID(length) {
			a.nodes[id+1] = node{parent: id, kind: snapshots.KindCommitted, key: uint64(id + 1), upon: uint64(id)}
		}
		require.Equal(t, length <= MaxChain, a.chains(), "%d", length)
	}
}
