package metadata

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/filters"
	bolt "go.etcd.io/bbolt"
)

// Walk calls fn with every snapshot of a name that matches one of the filters, in containerd's filter syntax; with all
// if there are none. The order is that of the keys, or of the ids where an index answers.
//
// It sees one consistent state, which it copies before the first call, in records as they are stored (some 300 bytes
// each): so fn may take its time and call the store, and a writer never waits for a slow caller. It returns fn's error.
func (s *Store) Walk(ctx context.Context, name string, fn func(Snapshot) error, fs ...string) error {
	filter, err := filters.ParseAll(fs...)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	var found recordCopies
	err = s.view(func(btx *bolt.Tx) error {
		return found.collect(ctx, btx, name, planFilters(fs))
	})
	if err != nil {
		return err
	}
	for id, raw := range found.all {
		if err := ctx.Err(); err != nil {
			return err
		}
		sn, err := decodeSnapshot(id, raw)
		if err != nil {
			return fmt.Errorf("id %d: %w", id, err)
		}
		if !filter.Match(adaptor(sn)) {
			continue
		}
		if err := fn(sn); err != nil {
			return err
		}
	}
	return nil
}

// recordCopies are records copied out of the file, into blocks that are never copied again as more come: a buffer that grows
// would take a Walk of 10,000 four times what they are. A block is garbage once its records have been passed. The first is small:
// many a Walk finds one record.
type recordCopies struct {
	ids  []ID
	raw  [][]byte
	room []byte          // of the last block
	seen map[ID]struct{} // only where several indexes may name a record twice
}

// How large the first block is, and how large blocks become, each twice the one before, in bytes.
const (
	firstBlock = 1 << 10
	copyBlock  = 64 << 10
)

func (r *recordCopies) all(yield func(ID, []byte) bool) {
	for i, id := range r.ids {
		raw := r.raw[i]
		r.raw[i] = nil
		if !yield(id, raw) {
			return
		}
	}
}

func (r *recordCopies) add(records *bolt.Bucket, id []byte) {
	n := ID(binary.BigEndian.Uint64(id))
	if r.seen != nil {
		if _, ok := r.seen[n]; ok {
			return
		}
		r.seen[n] = struct{}{}
	}
	raw := records.Get(id)
	if raw == nil {
		return // the index is ahead of the records: Check reports it
	}
	r.ids = append(r.ids, n)
	if len(raw) > cap(r.room)-len(r.room) {
		r.room = make([]byte, 0, max(firstBlock, min(2*cap(r.room), copyBlock), len(raw)))
	}
	start, end := len(r.room), len(r.room)+len(raw)
	r.room = append(r.room, raw...)
	r.raw = append(r.raw, r.room[start:end:end])
}

// collect copies the records that the conditions select, a superset of what the filters match; all if there are none.
func (r *recordCopies) collect(ctx context.Context, btx *bolt.Tx, name string, conditions []condition) error {
	records := btx.Bucket(bucketRecords)
	if len(conditions) == 0 {
		return r.collectAll(ctx, btx, name)
	}
	if len(conditions) > 1 {
		r.seen = map[ID]struct{}{}
	}
	for _, c := range conditions {
		if err := c.each(btx, name, func(id []byte) { r.add(records, id) }); err != nil {
			return err
		}
	}
	return nil
}

func (r *recordCopies) collectAll(ctx context.Context, btx *bolt.Tx, name string) error {
	records := btx.Bucket(bucketRecords)
	prefix := nameKey(name, "")
	c := btx.Bucket(bucketKeys).Cursor()
	for k, id := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, id = c.Next() {
		r.add(records, id)
		if len(r.ids)%1024 == 0 && ctx.Err() != nil {
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
