package metadata

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"

	bolt "go.etcd.io/bbolt"

	"github.com/lamina-snapshotter/lamina/internal/span"
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
		return errors.Join(t.put(bucketMeta, keyStarts, key8(starts)), t.put(bucketMeta, keySum, metaSum(meta)))
	})
	return starts, err
}

// LastAnswered returns the latest start that a place of this medium can have seen: the count of starts, or what it was when
// the place last said what it has seen, if starts have been counted without that.
func (s *Store) LastAnswered(medium Medium) (starts uint64, err error) {
	err = s.view(func(btx *bolt.Tx) error {
		meta := btx.Bucket(bucketMeta)
		v := meta.Get(keyUnanswered(medium))
		if v == nil {
			v = meta.Get(keyStarts)
		}
		if len(v) == 8 {
			starts = binary.BigEndian.Uint64(v)
		}
		return nil
	})
	return starts, err
}

// Unanswered notes that starts will be counted from now on without a comparison with the place of this medium, which does
// not answer. The note stands before the start is counted: a power cut in between leaves one that says what the count is.
func (s *Store) Unanswered(ctx context.Context, medium Medium) error {
	return s.reduce(ctx, func(t *tx) error {
		meta := t.Bucket(bucketMeta)
		if meta.Get(keyUnanswered(medium)) != nil {
			return nil
		}
		starts := key8(0)
		if v := meta.Get(keyStarts); len(v) == 8 {
			starts = bytes.Clone(v)
		}
		return errors.Join(t.put(bucketMeta, keyUnanswered(medium), starts), t.put(bucketMeta, keySum, metaSum(meta)))
	})
}

// Answered drops that note: the place has been compared with it. That is done before the next start is counted and the place
// claims it; the note would refuse it afterwards.
func (s *Store) Answered(ctx context.Context, medium Medium) error {
	noted := false
	err := s.view(func(btx *bolt.Tx) error {
		noted = btx.Bucket(bucketMeta).Get(keyUnanswered(medium)) != nil
		return nil
	})
	if err != nil || !noted {
		return err
	}
	return s.reduce(ctx, func(t *tx) error {
		meta := t.Bucket(bucketMeta)
		return errors.Join(t.delete(bucketMeta, keyUnanswered(medium)), t.put(bucketMeta, keySum, metaSum(meta)))
	})
}

// keyUnanswered leads to the count of starts at which the place of a medium last said what it has seen.
func keyUnanswered(medium Medium) []byte { return []byte("unanswered " + medium.String()) }

// update runs a write that may make the store larger. It is ENOSPC where the disk has no room for that.
func (s *Store) update(ctx context.Context, fn func(*tx) error) error {
	if s.readOnly {
		return ErrReadOnly
	}
	return s.write(ctx, true, fn)
}

// reduce runs a write that frees about as much as it takes, or is needed before anything can be freed. It succeeds on a full
// disk.
func (s *Store) reduce(ctx context.Context, fn func(*tx) error) error {
	if s.readOnly {
		return ErrReadOnly
	}
	return s.write(ctx, false, fn)
}

// write is the part of a call that waits for the commits of others, and for its own.
func (s *Store) write(ctx context.Context, grow bool, fn func(*tx) error) error {
	ctx, part := span.Start(ctx, "store commit")
	err := s.batch.update(ctx, grow, fn)
	part.End(err)
	return err
}
