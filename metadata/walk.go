package metadata

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/filters"
	bolt "go.etcd.io/bbolt"
)

const (
	// walkChunk is how many records are read at a time.
	walkChunk = 256
	// giveBackChunks is after how many of these the pages that they were read from are given back.
	giveBackChunks = 8
)

// Walk calls fn with every snapshot of a name that matches one of the filters, in containerd's filter syntax; with all
// if there are none. The order is that of the keys, or of the ids where an index answers.
//
// Which snapshots it passes is of one consistent state. What it shows of each is read shortly before its turn; one that is gone by
// then, or does not match any more, is left out. So what is there all the while is shown once, as it was at some moment of it.
// No transaction is open while fn is called, which may take its time and call the store, and a writer never waits for a
// slow caller. It keeps 8 bytes for each snapshot, and some records, and gives the
// file's pages back as it goes. It returns fn's error.
func (s *Store) Walk(ctx context.Context, name string, fn func(Snapshot) error, fs ...string) error {
	filter, err := filters.ParseAll(fs...)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	var found foundIDs
	err = s.view(func(btx *bolt.Tx) error { return found.collect(ctx, btx, name, planFilters(fs)) })
	if err != nil {
		return err
	}
	return s.show(ctx, found.ids, func(sn Snapshot) error {
		if !filter.Match(adaptor(sn)) {
			return nil
		}
		return fn(sn)
	})
}

// show calls fn with the snapshots of these ids that are there when their turn comes nearly.
func (s *Store) show(ctx context.Context, ids []ID, fn func(Snapshot) error) error {
	var records recordCopies
	chunks := 0
	for chunk := range slices.Chunk(ids, walkChunk) {
		if chunks++; chunks%giveBackChunks == 0 {
			_ = s.GiveBack() // of a store that was closed the next view tells; else there is more in memory for a while
		}
		if err := s.view(func(btx *bolt.Tx) error { return records.copy(ctx, btx, chunk) }); err != nil {
			return err
		}
		for id, raw := range records.all {
			if err := ctx.Err(); err != nil {
				return err
			}
			sn, err := decodeSnapshot(id, raw)
			if err != nil {
				return fmt.Errorf("id %d: %w", id, err)
			}
			if err := fn(sn); err != nil {
				return err
			}
		}
	}
	return nil
}

// recordCopies are records copied out of the file, one behind the other. What is decoded of them is copied again.
type recordCopies struct {
	ids  []ID
	ends []int // of each, in raw
	raw  []byte
}

// copy replaces the copies by those of the records of these ids that there are.
func (r *recordCopies) copy(ctx context.Context, btx *bolt.Tx, ids []ID) error {
	r.ids, r.ends, r.raw = r.ids[:0], r.ends[:0], r.raw[:0]
	records := btx.Bucket(bucketRecords)
	for _, id := range ids {
		raw := records.Get(key8(uint64(id)))
		if raw == nil {
			continue // removed meanwhile, or the index is ahead of the records: Check reports that
		}
		r.raw = append(r.raw, raw...)
		r.ids, r.ends = append(r.ids, id), append(r.ends, len(r.raw))
	}
	return ctx.Err()
}

func (r *recordCopies) all(yield func(ID, []byte) bool) {
	start := 0
	for i, end := range r.ends {
		if !yield(r.ids[i], r.raw[start:end]) {
			return
		}
		start = end
	}
}

// foundIDs are those that a Walk is to pass.
type foundIDs struct {
	ids  []ID
	seen map[ID]struct{} // only where several indexes may name one twice
}

func (f *foundIDs) add(id []byte) {
	n, ok := parseKey8(id)
	if !ok {
		return // Check reports it
	}
	if f.seen != nil {
		if _, ok := f.seen[n]; ok {
			return
		}
		f.seen[n] = struct{}{}
	}
	f.ids = append(f.ids, n)
}

// collect takes the ids that the conditions select, a superset of what the filters match; all if there are none.
func (f *foundIDs) collect(ctx context.Context, btx *bolt.Tx, name string, conditions []condition) error {
	if len(conditions) == 0 {
		return f.collectAll(ctx, btx, name)
	}
	if len(conditions) > 1 {
		f.seen = map[ID]struct{}{}
	}
	for _, c := range conditions {
		if err := c.each(btx, name, f.add); err != nil {
			return err
		}
	}
	return nil
}

func (f *foundIDs) collectAll(ctx context.Context, btx *bolt.Tx, name string) error {
	prefix := nameKey(name, "")
	c := btx.Bucket(bucketKeys).Cursor()
	for k, id := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, id = c.Next() {
		f.add(id)
		if len(f.ids)%1024 == 0 && ctx.Err() != nil {
			break
		}
	}
	return ctx.Err()
}

// each calls fn with the ids that the condition selects.
func (c condition) each(btx *bolt.Tx, name string, fn func(id []byte)) error {
	switch c.field {
	case "name", "parent":
		id, err := lookup(btx, name, c.value)
		if errors.Is(err, ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if c.field == "name" {
			fn(key8(uint64(id)))
			return nil
		}
		eachSuffix(btx.Bucket(bucketChildren), key8(uint64(id)), fn)
	default:
		eachSuffix(btx.Bucket(bucketLabels), labelPrefix(labelTag(c.field), name, c.value), fn)
	}
	return nil
}

// eachSuffix calls fn with the last 8 bytes of every key that is prefix and 8 bytes more.
func eachSuffix(b *bolt.Bucket, prefix []byte, fn func([]byte)) {
	c := b.Cursor()
	for k, _ := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, _ = c.Next() {
		if len(k) == len(prefix)+8 {
			fn(k[len(prefix):])
		}
	}
}

// adaptor shows a snapshot to a filter, by the field names that containerd documents at Snapshotter.Walk.
func adaptor(sn Snapshot) filters.Adaptor {
	return filters.AdapterFunc(func(path []string) (string, bool) {
		if len(path) == 0 {
			return "", false
		}
		switch path[0] {
		case "kind":
			return kindName(sn.Kind), sn.Kind != snapshots.KindUnknown
		case "name":
			return sn.Key, true
		case "parent":
			return sn.Parent, true
		case "labels":
			v, ok := sn.Labels[strings.Join(path[1:], ".")]
			return v, ok
		}
		return "", false
	})
}
