package metadata

import (
	"bytes"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots"
	bolt "go.etcd.io/bbolt"
)

// MaxChain bounds a chain: four times what overlayfs can stack. Who makes snapshots keeps to it.
const MaxChain = 2000

// Get returns the snapshot key of a snapshotter name, or ErrNotExist.
func (s *Store) Get(name, key string) (sn Snapshot, err error) {
	err = s.view(func(btx *bolt.Tx) error {
		sn, err = get(btx, name, key)
		return err
	})
	return sn, err
}

// Recorded reports whether there is a record of id.
func (s *Store) Recorded(id ID) (found bool, err error) {
	err = s.view(func(btx *bolt.Tx) error {
		found = btx.Bucket(bucketRecords).Get(key8(uint64(id))) != nil
		return nil
	})
	return found, err
}

// Chain returns the snapshot key and the links from it down to its base; the first link is its own.
func (s *Store) Chain(name, key string) (sn Snapshot, chain []Link, err error) {
	err = s.view(func(btx *bolt.Tx) error {
		if sn, err = get(btx, name, key); err != nil {
			return err
		}
		chain, err = appendChain(chain, btx, sn.ID)
		return err
	})
	return sn, chain, err
}

// ChainOf is Chain for the snapshot of an id.
func (s *Store) ChainOf(id ID) (sn Snapshot, chain []Link, err error) {
	err = s.view(func(btx *bolt.Tx) error {
		if sn, err = record(btx, id); err != nil {
			return err
		}
		chain, err = appendChain(chain, btx, id)
		return err
	})
	return sn, chain, err
}

// appendChain walks from id to the base. A rebased snapshot may be older than its parent, so ids prove nothing about
// cycles; the bound ends one.
func appendChain(chain []Link, btx *bolt.Tx, id ID) ([]Link, error) {
	records := btx.Bucket(bucketRecords)
	for id != 0 {
		raw := records.Get(key8(uint64(id)))
		if raw == nil {
			return nil, fmt.Errorf("the record of id %d in the chain is missing: the store is damaged", id)
		}
		link, err := decodeLink(id, raw)
		if err != nil {
			return nil, fmt.Errorf("id %d: %w", id, err)
		}
		if len(chain) == MaxChain {
			return nil, fmt.Errorf("the chain has more than %d snapshots: the store is damaged", MaxChain)
		}
		chain = append(chain, link)
		id = link.ParentID
	}
	return chain, nil
}

// Viewed reports whether a view shows the content of id.
func (s *Store) Viewed(id ID) (viewed bool, err error) {
	err = s.view(func(btx *bolt.Tx) error {
		prefix := key8(uint64(id))
		c := btx.Bucket(bucketChildren).Cursor()
		for k, _ := c.Seek(prefix); bytes.HasPrefix(k, prefix) && !viewed; k, _ = c.Next() {
			child := k[len(prefix):]
			link, err := decodeEntry(child, btx.Bucket(bucketRecords).Get(child))
			if err != nil {
				return fmt.Errorf("id %x: %w", child, err)
			}
			viewed = link.Kind == snapshots.KindView
		}
		return nil
	})
	return viewed, err
}

// Contents returns the links of all snapshots of all names whose content is of the medium, by id.
func (s *Store) Contents(medium Medium) (links []Link, err error) {
	err = s.view(func(btx *bolt.Tx) error {
		return btx.Bucket(bucketRecords).ForEach(func(k, v []byte) error {
			link, err := decodeEntry(k, v)
			if err != nil {
				return fmt.Errorf("id %x: %w", k, err)
			}
			if link.Placement.Medium == medium {
				links = append(links, link)
			}
			return nil
		})
	})
	return links, err
}
