package metadata

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/snapshots"
	bolt "go.etcd.io/bbolt"
)

// WalkTrees calls fn with all snapshots of all names but the templates, as of one moment: the names in their order, the bases of
// a name and the children of a snapshot by id, and below each snapshot, right behind it, all that is made upon it. A snapshot
// whose parent is missing, which is damage, counts as a base.
//
// As with Walk, the records are copied first, so fn may take its time and call the store. It returns fn's error.
func (s *Store) WalkTrees(ctx context.Context, fn func(Snapshot) error) error {
	var f forest
	if err := s.view(func(btx *bolt.Tx) error { return f.read(ctx, btx) }); err != nil {
		return err
	}
	return f.walk(ctx, fn)
}

// A forest is all snapshots of a store and how they are made upon each other.
type forest struct {
	copies   recordCopies
	at       map[ID]int  // where in copies a snapshot is
	children map[ID][]ID // in the order of the ids
	bases    []base
}

type base struct {
	name string
	id   ID
}

// read copies the records, and finds out what lies below what.
func (f *forest) read(ctx context.Context, btx *bolt.Tx) error {
	f.at, f.children = map[ID]int{}, map[ID][]ID{}
	records := btx.Bucket(bucketRecords)
	names := map[ID]string{}
	parents := map[ID]ID{}
	c := btx.Bucket(bucketKeys).Cursor()
	last := ""
	for k, id := c.First(); k != nil; k, id = c.Next() {
		name, _, ok := bytes.Cut(k, []byte{0})
		if !ok || len(id) != 8 {
			continue // Check reports it
		}
		if string(name) == Templates {
			continue
		}
		if string(name) != last { // so that it is allocated once
			last = string(name)
		}
		n := ID(binary.BigEndian.Uint64(id))
		if err := f.add(records, n, id, parents); err != nil {
			return err
		}
		names[n] = last
		if len(names)%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
	}
	for id, parent := range parents {
		if _, ok := parents[parent]; ok {
			f.children[parent] = append(f.children[parent], id)
		} else { // it is upon nothing, or a template
			f.bases = append(f.bases, base{names[id], id})
		}
	}
	for _, ids := range f.children {
		slices.Sort(ids)
	}
	slices.SortFunc(f.bases, func(a, b base) int { return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.id, b.id)) })
	return nil
}

func (f *forest) add(records *bolt.Bucket, n ID, id []byte, parents map[ID]ID) error {
	before := len(f.copies.ids)
	f.copies.add(records, id)
	if len(f.copies.ids) == before {
		return nil
	}
	link, err := decodeLink(n, f.copies.raw[before])
	if err != nil {
		return fmt.Errorf("id %d: %w", n, err)
	}
	f.at[n] = before
	parents[n] = link.ParentID
	return nil
}

// walk calls fn with each tree.
func (f *forest) walk(ctx context.Context, fn func(Snapshot) error) error {
	var todo []ID
	for _, b := range f.bases {
		todo = append(todo[:0], b.id)
		for len(todo) > 0 {
			id := todo[len(todo)-1]
			todo = todo[:len(todo)-1]
			if err := ctx.Err(); err != nil {
				return err
			}
			at := f.at[id]
			sn, err := decodeSnapshot(id, f.copies.raw[at])
			if err != nil {
				return fmt.Errorf("id %d: %w", id, err)
			}
			f.copies.raw[at] = nil
			if err := fn(sn); err != nil {
				return err
			}
			for _, child := range slices.Backward(f.children[id]) { // the first one is taken next
				todo = append(todo, child)
			}
		}
	}
	return nil
}

// Family returns a snapshot, those that it is made upon, the nearest first, without the template, and those that are made
// upon it, by id.
func (s *Store) Family(name, key string) (sn Snapshot, parents, children []Snapshot, err error) {
	err = s.view(func(btx *bolt.Tx) error {
		if sn, err = get(btx, name, key); err != nil {
			return err
		}
		chain, err := appendChain(nil, btx, sn.ID)
		if err != nil {
			return err
		}
		for _, link := range chain[1:] {
			parent, err := record(btx, link.ID)
			if err != nil {
				return err
			}
			if parent.Name != Templates {
				parents = append(parents, parent)
			}
		}
		var errs []error
		eachSuffix(btx.Bucket(bucketChildren), key8(uint64(sn.ID)), func(id []byte) {
			child, err := record(btx, ID(binary.BigEndian.Uint64(id)))
			children, errs = append(children, child), append(errs, err)
		})
		return errors.Join(errs...)
	})
	if err != nil {
		return Snapshot{}, nil, nil, err
	}
	return sn, parents, children, nil
}

// KindName is how containerd calls a kind: "active", "view" or "committed".
func KindName(k snapshots.Kind) string { return kindName(k) }
