package metadata

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
)

// A forger writes into a store what bbolt and all checksums take for sound.
type forger struct{ *bolt.Tx }

// change writes the record of an id anew, and leaves what leads to it as it was.
func (f forger) change(id ID, change func(*Snapshot)) error {
	sn, err := record(f.Tx, id)
	if err != nil {
		return err
	}
	change(&sn)
	return f.Bucket(bucketRecords).Put(key8(uint64(id)), sn.encode())
}

// raw writes a record of any bytes.
func (f forger) raw(id ID, b []byte) error {
	return f.Bucket(bucketRecords).Put(key8(uint64(id)), seal(id, b))
}

// unsealed is a record without its checksum.
func unsealed(sn Snapshot) []byte {
	b := sn.encode()
	return b[:len(b)-checksumSize]
}

// The sample has committed snapshots of ids 2 to 4, of which 2 is a directory, 3 a volume upon it and 4 a directory again, and an active 5.
var forgeries = map[string]func(forger) error{
	"a key with slashes": func(f forger) error { return f.change(2, func(sn *Snapshot) { sn.Key = "../../etc" }) },
	"a name that climbs": func(f forger) error { return f.change(2, func(sn *Snapshot) { sn.Name = "../.." }) },
	"an empty key":       func(f forger) error { return f.change(5, func(sn *Snapshot) { sn.Key = "" }) },
	"a device of 25 bits": func(f forger) error {
		return f.change(3, func(sn *Snapshot) { sn.Placement.Device = MaxDevice + 1 })
	},
	"the device of another": func(f forger) error {
		return f.change(3, func(sn *Snapshot) { sn.Placement.Device++ })
	},
	"an unknown kind":    func(f forger) error { return f.change(3, func(sn *Snapshot) { sn.Kind = 77 }) },
	"no kind":            func(f forger) error { return f.change(3, func(sn *Snapshot) { sn.Kind = 0 }) },
	"an unknown medium":  func(f forger) error { return f.change(3, func(sn *Snapshot) { sn.Placement.Medium = 9 }) },
	"a parent of itself": func(f forger) error { return f.change(3, func(sn *Snapshot) { sn.ParentID, sn.Parent = 3, sn.Key }) },
	"a circle": func(f forger) error {
		return f.change(2, func(sn *Snapshot) { sn.ParentID, sn.Parent = 4, "key-3-committed" })
	},
	"a parent that is none":    func(f forger) error { return f.change(3, func(sn *Snapshot) { sn.ParentID = math.MaxUint64 }) },
	"a parent of another name": func(f forger) error { return f.change(3, func(sn *Snapshot) { sn.Parent = "/etc" }) },
	"a project of a volume":    func(f forger) error { return f.change(3, func(sn *Snapshot) { sn.Placement.Project = math.MaxUint32 }) },
	"no content, and no view":  func(f forger) error { return f.change(2, func(sn *Snapshot) { sn.Placement = Placement{} }) },
	"an unknown field":         func(f forger) error { return f.raw(2, appendUint(nil, 99, 1)) },
	"text for a number":        func(f forger) error { return f.raw(2, appendString(nil, fieldParentID, "/etc")) },
	"a length beyond the end":  func(f forger) error { return f.raw(2, []byte{fieldKey<<3 | 2, 0xff, 0xff, 0xff, 0xff, 0x7f, 'k'}) },
	"a record of nothing":      func(f forger) error { return f.raw(2, nil) },
	"an id of the template's": func(f forger) error {
		return f.change(3, func(sn *Snapshot) { sn.Name, sn.Parent, sn.ParentID = Templates, "", 0 })
	},
	"a label that is a path": func(f forger) error {
		return f.change(2, func(sn *Snapshot) { sn.Labels = map[string]string{snapshots.LabelSnapshotRef: "/etc,lowerdir=/"} })
	},
	"a record of the id 0": func(f forger) error { return f.raw(0, nil) },
	"a snapshot of the id 0": func(f forger) error {
		sn := Snapshot{Name: "lamina", Key: "zero", Kind: snapshots.KindActive, Placement: Placement{Medium: Directory}}
		return errors.Join(f.raw(0, unsealed(sn)), f.Bucket(bucketKeys).Put(nameKey(sn.Name, sn.Key), key8(0)))
	},
	"a label twice": func(f forger) error {
		sn, err := record(f.Tx, 5)
		label := appendString(appendString(nil, fieldLabelKey, snapshots.LabelSnapshotRef), fieldLabelValue, "x")
		again := appendString(unsealed(sn), fieldLabel, string(label))
		key := append(labelPrefix(1, sn.Name, "x"), key8(5)...)
		return errors.Join(err, f.raw(5, again), f.Bucket(bucketLabels).Put(key, nil))
	},
	"a record above the sequence": func(f forger) error {
		return f.Bucket(bucketRecords).Put(key8(1<<63), Snapshot{ID: 1 << 63, Kind: snapshots.KindActive}.encode())
	},
	"a short key of a record":    func(f forger) error { return f.Bucket(bucketRecords).Put([]byte{1}, nil) },
	"a key that leads nowhere":   func(f forger) error { return f.Bucket(bucketKeys).Put(nameKey("lamina", ".."), key8(1<<40)) },
	"a key that leads to less":   func(f forger) error { return f.Bucket(bucketKeys).Put(nameKey("lamina", "k"), []byte{1}) },
	"a key without a name":       func(f forger) error { return f.Bucket(bucketKeys).Put([]byte("k"), key8(2)) },
	"a key of another's record":  func(f forger) error { return f.Bucket(bucketKeys).Put(nameKey("lamina", "k"), key8(2)) },
	"a short child":              func(f forger) error { return f.Bucket(bucketChildren).Put(append(key8(2), 1), nil) },
	"a child that is none":       func(f forger) error { return f.Bucket(bucketChildren).Put(childKey(2, 1<<40), nil) },
	"a short label":              func(f forger) error { return f.Bucket(bucketLabels).Put([]byte{1}, nil) },
	"a label of nobody's":        func(f forger) error { return f.Bucket(bucketLabels).Put(append([]byte("x\x00y"), key8(1<<40)...), nil) },
	"a short device":             func(f forger) error { return f.Bucket(bucketDevices).Put([]byte{1}, key8(3)) },
	"a device of 32 bits":        func(f forger) error { return f.Bucket(bucketDevices).Put(key4(math.MaxUint32), key8(3)) },
	"a short entry of the trash": func(f forger) error { return f.Bucket(bucketTrash).Put([]byte{1}, nil) },
	"trash of another's": func(f forger) error {
		return f.Bucket(bucketTrash).Put(key8(2), Link{ID: 2, Placement: Placement{Medium: Directory}}.encode())
	},
	"trash of another's device": func(f forger) error {
		sn, err := record(f.Tx, 3)
		return errors.Join(err, f.Bucket(bucketTrash).Put(key8(1), Link{ID: 1, Placement: sn.Placement}.encode()))
	},
	"trash above the sequence": func(f forger) error {
		return f.Bucket(bucketTrash).Put(key8(1<<63), Link{ID: 1 << 63, Placement: Placement{Medium: Directory}}.encode())
	},
	"a bucket in a bucket": func(f forger) error {
		_, err := f.Bucket(bucketRecords).CreateBucket(key8(1 << 30))
		return err
	},
	"a value for a bucket": func(f forger) error {
		return errors.Join(f.DeleteBucket(bucketTrash), f.Bucket(bucketMeta).Put(bucketTrash, nil))
	},
	"a uuid that is a path": func(f forger) error {
		meta := f.Bucket(bucketMeta)
		return errors.Join(meta.Put(keyUUID, []byte("../../etc")), meta.Put(keySum, metaSum(meta)))
	},
	"starts that end": func(f forger) error {
		meta := f.Bucket(bucketMeta)
		return errors.Join(meta.Put(keyStarts, []byte{1}), meta.Put(keySum, metaSum(meta)))
	},
}

// A store that somebody has written by hand, checksums and all, is refused before anything is built upon it; what opens it read-only, to
// show it, ends in an error at worst, and the check finds what is wrong.
func TestForgedStore(t *testing.T) {
	good := sampleStore(t)
	path := filepath.Join(t.TempDir(), "lamina.db")
	for what, forge := range forgeries {
		require.NoError(t, os.WriteFile(path, good, 0o600))
		bbolt(t, path, func(btx *bolt.Tx) error { return forge(forger{btx}) })
		_, err := Open(path, Options{})
		require.ErrorIs(t, err, ErrDamaged, what)
		s, err := Open(path, Options{ReadOnly: true})
		if err == nil {
			err = readAll(t, s)
			require.NoError(t, s.Close())
		}
		require.Error(t, err, what)
		if what == "no content, and no view" {
			require.ErrorContains(t, err, `id 2, "key-1-committed" of "lamina"`)
		}
	}
}

// readAll reads a store in every way that there is.
func readAll(t *testing.T, s *Store) error {
	t.Helper()
	ctx := t.Context()
	var errs []error
	for problem, err := range s.Check(ctx) {
		errs = append(errs, err, errors.New(problem.String()))
	}
	add := func(err error) { errs = append(errs, err) }
	seen := 0
	each := func(sn Snapshot) error {
		if seen++; seen > 20 { // each chain of a circle is followed for long
			return nil
		}
		_, _, err := s.Chain(sn.Name, sn.Key)
		_, _, _, familyErr := s.Family(sn.Name, sn.Key)
		_, viewedErr := s.Viewed(sn.ID)
		errs = append(errs, err, familyErr, viewedErr)
		return nil
	}
	add(s.Walk(ctx, "lamina", each))
	add(s.Walk(ctx, "lamina", each, `name==k`, `parent==key-1-committed`, `labels."containerd.io/snapshot.ref"==ref-1`))
	add(s.WalkTrees(ctx, each))
	for _, medium := range []Medium{NoMedium, Directory, Volume} {
		_, err := s.Contents(medium)
		add(err)
	}
	_, err := s.Trash(ctx)
	add(err)
	_, err = s.Starts()
	add(err)
	require.Less(t, seen, 1000)
	return errors.Join(errs...)
}

// unwritten are records that no write would be taken with, and that can be read all the same.
var unwritten = map[string]func(forger) error{
	"labels have 4096000 bytes": func(f forger) error {
		return f.change(2, func(sn *Snapshot) {
			sn.Labels = map[string]string{}
			for i := range 1000 {
				sn.Labels[fmt.Sprintf("%06d", i)] = strings.Repeat("v", 4090)
			}
		})
	},
	"label key and value length": func(f forger) error {
		return f.change(2, func(sn *Snapshot) { sn.Labels = map[string]string{"l\x00": strings.Repeat("v", 20<<20)} })
	},
	`the label "\xff" is not UTF-8`: func(f forger) error {
		return f.change(2, func(sn *Snapshot) { sn.Labels = map[string]string{"\xff": "\n\x00"} })
	},
	"the key is not UTF-8": func(f forger) error {
		active, err := record(f.Tx, 5)
		keys := f.Bucket(bucketKeys)
		return errors.Join(
			err, keys.Delete(nameKey("lamina", active.Key)), keys.Put(nameKey("lamina", "\xff"), key8(5)),
			f.change(5, func(sn *Snapshot) { sn.Key = "\xff" }))
	},
}

// What an older store may have keeps none from being opened, and Check tells of it.
func TestOpenOfWhatNoWriteTakes(t *testing.T) {
	good := sampleStore(t)
	path := filepath.Join(t.TempDir(), "lamina.db")
	for what, forge := range unwritten {
		require.NoError(t, os.WriteFile(path, good, 0o600))
		bbolt(t, path, func(btx *bolt.Tx) error { return forge(forger{btx}) })
		for _, readOnly := range []bool{false, true} {
			s, err := Open(path, Options{ReadOnly: readOnly})
			require.NoError(t, err, what)
			var found []string
			for problem, err := range s.Check(t.Context()) {
				require.NoError(t, err)
				found = append(found, problem.String())
			}
			require.Len(t, found, 1, what)
			require.Contains(t, found[0], what)
			require.NoError(t, s.Close())
		}
	}
}
