package metadata

import (
	"context"
	"fmt"

	bolt "go.etcd.io/bbolt"
)

// Trash returns the entries of the trash, by id: contents that are still to be deleted.
//
// Whoever deletes them must know that their removal is durable, and a plain read does not: bbolt shows a transaction from
// the moment that its meta page is written, before that is synced. So this read takes its turn among the writes. It
// returns ErrFailed after a commit of unknown fate.
func (s *Store) Trash(ctx context.Context) (links []Link, err error) {
	if s.readOnly {
		err = s.view(func(btx *bolt.Tx) error {
			links, err = readTrash(btx)
			return err
		})
		return links, err
	}
	err = s.reduce(ctx, func(t *tx) error {
		links, err = readTrash(t.Tx)
		return err
	})
	return links, err
}

func readTrash(btx *bolt.Tx) (links []Link, err error) {
	err = btx.Bucket(bucketTrash).ForEach(func(k, v []byte) error {
		link, err := decodeEntry(k, v)
		if err != nil {
			return fmt.Errorf("trash entry %x: %w", k, err)
		}
		links = append(links, link)
		return nil
	})
	return links, err
}

// Forget deletes entries of the trash, whose contents have been deleted: their ids are free from now on.
func (s *Store) Forget(ctx context.Context, links ...Link) error {
	err := s.reduce(ctx, func(t *tx) error {
		for _, link := range links {
			if err := t.forget(link); err != nil {
				return err
			}
			if link.Placement.Medium != Volume {
				continue
			}
			if err := t.delete(bucketDevices, key4(link.Placement.Device)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, link := range links {
		if link.Placement.Medium == Volume {
			s.ReleaseDevice(link.Placement.Device)
		}
		if link.Placement.Project != 0 {
			s.ReleaseProject(link.Placement.Project)
		}
	}
	return nil
}

// Adopt puts contents that lie at free numbers into the trash: what a crash left between content and record. Its caller
// knows that nobody is making something at these numbers. A directory's number is its id; a volume gets an id.
func (s *Store) Adopt(ctx context.Context, medium Medium, contents []uint64) error {
	links := make([]Link, 0, len(contents))
	for _, n := range contents {
		link := Link{ID: ID(n), Placement: Placement{Medium: medium}}
		if medium == Volume {
			link.ID, link.Placement.Device = s.ReserveID(), uint32(n)
		}
		links = append(links, link)
	}
	err := s.reduce(ctx, func(t *tx) error {
		for _, link := range links {
			if err := t.adopt(link); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, link := range links {
		s.skip(link)
	}
	return nil
}

func (t *tx) adopt(link Link) error {
	if err := t.checkFree(link.ID, link.Placement); err != nil {
		return err
	}
	if err := t.raiseSequence(link.ID); err != nil {
		return err
	}
	if link.Placement.Medium == Volume {
		if err := t.put(bucketDevices, key4(link.Placement.Device), key8(uint64(link.ID))); err != nil {
			return err
		}
	}
	return t.discard(link)
}

// skip keeps the numbers of an adopted content from being reserved.
func (s *Store) skip(link Link) {
	if link.Placement.Medium == Volume {
		s.mu.Lock()
		s.devices.take(link.Placement.Device)
		s.mu.Unlock()
	}
	for next := s.nextID.Load(); next <= uint64(link.ID); next = s.nextID.Load() {
		if s.nextID.CompareAndSwap(next, uint64(link.ID)+1) {
			return
		}
	}
}
