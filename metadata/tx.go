package metadata

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/snapshots"
	bolt "go.etcd.io/bbolt"
)

// appendFill is how full bbolt leaves a page that it splits, where keys come in order: full but for some room to grow.
const appendFill = 0.9

// tx is a writable transaction that counts its writes and keeps the sum of what the store then holds. All writes go through
// put, delete and raiseSequence.
type tx struct {
	*bolt.Tx
	writes  int
	summer  summer
	changes []change // in the counts
}

func (t *tx) put(bucket, k, v []byte) error {
	if v == nil {
		v = []byte{} // Get tells it from no entry
	}
	b := t.Bucket(bucket)
	t.writes++
	if was := b.Get(k); was != nil {
		t.summer.remove(bucket, k, was)
	}
	t.summer.add(bucket, k, v)
	return b.Put(k, v)
}

func (t *tx) delete(bucket, k []byte) error {
	b := t.Bucket(bucket)
	t.writes++
	if was := b.Get(k); was != nil {
		t.summer.remove(bucket, k, was)
	}
	return b.Delete(k)
}

// insert writes a record and what points at it.
func (t *tx) insert(sn Snapshot) error { return t.replace(Snapshot{}, sn) }

// erase deletes a record and what points at it. The device id stays taken.
func (t *tx) erase(sn Snapshot) error { return t.replace(sn, Snapshot{}) }

// replace turns one state of a snapshot into another, of which one may be none (id 0). It writes only what differs: each
// bucket it leaves alone saves a commit the pages from a leaf to the root.
func (t *tx) replace(was, is Snapshot) error {
	t.count(was, is)
	var errs []error
	if was.ID != 0 && (is.ID == 0 || is.Key != was.Key) {
		errs = append(errs, t.delete(bucketKeys, nameKey(was.Name, was.Key)))
	}
	if is.ID != 0 && is.Key != was.Key {
		errs = append(errs, t.put(bucketKeys, nameKey(is.Name, is.Key), key8(uint64(is.ID))))
	}
	t.Bucket(bucketRecords).FillPercent = appendFill
	if is.ID != 0 {
		errs = append(errs, t.put(bucketRecords, key8(uint64(is.ID)), is.encode()))
	} else {
		errs = append(errs, t.delete(bucketRecords, key8(uint64(was.ID))))
	}
	errs = append(errs, t.replaceSet(bucketChildren, childKeys(was), childKeys(is)))
	errs = append(errs, t.replaceSet(bucketLabels, labelKeys(was), labelKeys(is)))
	return errors.Join(errs...)
}

// replaceSet deletes the keys that are no more and puts those that are new; they have no values.
func (t *tx) replaceSet(bucket []byte, was, is [][]byte) error {
	has := func(keys [][]byte, key []byte) bool {
		return slices.ContainsFunc(keys, func(k []byte) bool { return bytes.Equal(k, key) })
	}
	for _, k := range was {
		if !has(is, k) {
			if err := t.delete(bucket, k); err != nil {
				return err
			}
		}
	}
	for _, k := range is {
		if !has(was, k) {
			if err := t.put(bucket, k, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkParent checks that the parent that sn names is there, is the one meant, and is committed; notCommitted is the
// error if it is not.
func (t *tx) checkParent(sn Snapshot, notCommitted error) error {
	if sn.Parent == "" {
		return checkTemplate(t.Tx, sn)
	}
	id, err := t.lookup(sn.Name, sn.Parent)
	if err != nil {
		return fmt.Errorf("parent: %w", err)
	}
	if id != sn.ParentID {
		return fmt.Errorf("parent: %w: %s was removed and made again meanwhile", ErrNotExist, sn.Parent)
	}
	parent, err := decodeLink(id, t.Bucket(bucketRecords).Get(key8(uint64(id))))
	if err != nil {
		return fmt.Errorf("parent: %w", err)
	}
	if parent.Kind != snapshots.KindCommitted {
		return fmt.Errorf("parent: %w: %s is %s, not committed", notCommitted, sn.Parent, kindName(parent.Kind))
	}
	return nil
}

// checkTemplate checks that what lies below a base, if anything does, is a template.
func checkTemplate(btx *bolt.Tx, base Snapshot) error {
	if base.ParentID == 0 {
		return nil
	}
	template, err := record(btx, base.ParentID)
	if err != nil {
		return fmt.Errorf("template: %w", err)
	}
	if template.Name != Templates || template.Kind != snapshots.KindCommitted {
		return fmt.Errorf("template: %w: id %d is none", ErrInvalid, template.ID)
	}
	return nil
}

// checkFree guards rule 3: what Create is given must be nobody's.
func (t *tx) checkFree(id ID, p Placement) error {
	if id == 0 {
		return fmt.Errorf("%w: id 0", ErrInvalid)
	}
	if t.Bucket(bucketRecords).Get(key8(uint64(id))) != nil || t.Bucket(bucketTrash).Get(key8(uint64(id))) != nil {
		return fmt.Errorf("%w: id %d is taken", ErrInvalid, id)
	}
	if p.Medium != Volume {
		return nil
	}
	if p.Device == 0 || p.Device > MaxDevice {
		return fmt.Errorf("%w: device id %d", ErrInvalid, p.Device)
	}
	if t.Bucket(bucketDevices).Get(key4(p.Device)) != nil {
		return fmt.Errorf("%w: device id %d is taken", ErrInvalid, p.Device)
	}
	return nil
}

// raiseSequence keeps the sequence of the records no lower than id, so that ids are not given twice.
func (t *tx) raiseSequence(id ID) error {
	b := t.Bucket(bucketRecords)
	if b.Sequence() >= uint64(id) {
		return nil
	}
	t.writes++
	t.summer.resequence(bucketRecords, b.Sequence(), uint64(id))
	return b.SetSequence(uint64(id))
}

func (t *tx) firstChild(id ID) (ID, bool) {
	prefix := key8(uint64(id))
	k, _ := t.Bucket(bucketChildren).Cursor().Seek(prefix)
	if len(k) != 16 || !bytes.HasPrefix(k, prefix) {
		return 0, false
	}
	return ID(binary.BigEndian.Uint64(k[8:])), true
}

func (t *tx) lookup(name, key string) (ID, error)    { return lookup(t.Tx, name, key) }
func (t *tx) get(name, key string) (Snapshot, error) { return get(t.Tx, name, key) }

func lookup(btx *bolt.Tx, name, key string) (ID, error) {
	id := btx.Bucket(bucketKeys).Get(nameKey(name, key))
	if len(id) != 8 {
		return 0, fmt.Errorf("%w: %s", ErrNotExist, key)
	}
	return ID(binary.BigEndian.Uint64(id)), nil
}

func get(btx *bolt.Tx, name, key string) (Snapshot, error) {
	id, err := lookup(btx, name, key)
	if err != nil {
		return Snapshot{}, err
	}
	return record(btx, id)
}

// record returns the snapshot of an id that something leads to.
func record(btx *bolt.Tx, id ID) (Snapshot, error) {
	raw := btx.Bucket(bucketRecords).Get(key8(uint64(id)))
	if raw == nil {
		return Snapshot{}, fmt.Errorf("the record of id %d is missing: the store is damaged", id)
	}
	return decodeSnapshot(id, raw)
}

// nameKey is the key of a snapshot in the bucket of keys. A name holds no zero byte, so the names stay apart.
func nameKey(name, key string) []byte {
	b := make([]byte, 0, len(name)+1+len(key))
	return append(append(append(b, name...), 0), key...)
}

// childKeys are the keys of a snapshot among the children.
func childKeys(sn Snapshot) [][]byte {
	if sn.ParentID == 0 {
		return nil
	}
	return [][]byte{childKey(sn.ParentID, sn.ID)}
}

func childKey(parent, child ID) []byte {
	return binary.BigEndian.AppendUint64(key8(uint64(parent)), uint64(child))
}

// rebase puts a snapshot without parent onto parent; one that has a parent keeps it, and parent must agree.
func (t *tx) rebase(sn *Snapshot, parent string) error {
	if parent != "" && sn.Parent == "" {
		if sn.ParentID != 0 {
			return fmt.Errorf("%w: %s is upon a template and cannot be put onto %s", ErrState, sn.Key, parent)
		}
		id, err := t.lookup(sn.Name, parent)
		if err != nil {
			return fmt.Errorf("parent: %w", err)
		}
		sn.Parent, sn.ParentID = parent, id
	}
	if parent != "" && parent != sn.Parent {
		return fmt.Errorf("%w: the parent is %s and cannot become %s", ErrInvalid, sn.Parent, parent)
	}
	return t.checkParent(*sn, ErrState)
}
