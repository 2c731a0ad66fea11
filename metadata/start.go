package metadata

import (
	"context"
	"encoding/binary"
	"errors"

	bolt "go.etcd.io/bbolt"
)

// Starts returns how often the store has been started.
func (s *Store) Starts() (starts uint64, err error) {
	err = s.view(func(btx *bolt.Tx) error {
		if v := btx.Bucket(bucketMeta).Get(keyStarts); len(v) == 8 {
			starts = binary.BigEndian.Uint64(v)
		}
		return nil
	})
	return starts, err
}

// Start counts a start and returns the new count. The count goes into each place that the store owns, after it stands
// here: so a place never shows a higher one than its store, unless the store was put back from an old copy. Whoever
// calls Start has compared the two first; comparing after would let a store catch up with its place by starting often.
func (s *Store) Start(ctx context.Context) (starts uint64, err error) {
	err = s.reduce(ctx, func(t *tx) error {
		meta := t.Bucket(bucketMeta)
		starts = 1
		if v := meta.Get(keyStarts); len(v) == 8 {
			starts += binary.BigEndian.Uint64(v)
		}
		return errors.Join(t.put(meta, keyStarts, key8(starts)), t.put(meta, keySum, metaSum(meta)))
	})
	return starts, err
}

// update runs a write that may make the store larger. It is ENOSPC where the disk has no room for that.
func (s *Store) update(ctx context.Context, fn func(*tx) error) error {
	if s.readOnly {
		return ErrReadOnly
	}
	return s.batch.update(ctx, true, fn)
}

// reduce runs a write that frees about as much as it takes, or is needed before anything can be freed. It succeeds on a full
// disk.
func (s *Store) reduce(ctx context.Context, fn func(*tx) error) error {
	if s.readOnly {
		return ErrReadOnly
	}
	return s.batch.update(ctx, false, fn)
}
