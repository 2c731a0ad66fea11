package metadata

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"iter"

	"github.com/containerd/containerd/v2/core/snapshots"
	bolt "go.etcd.io/bbolt"
)

// Problem is an inconsistency inside the store.
type Problem struct {
	ID   ID     // the snapshot concerned, 0 if none
	Name string // snapshotter name and key that its record has, if it can be read
	Key  string
	Text string // what is wrong
}

func (p Problem) String() string {
	switch {
	case p.ID == 0:
		return p.Text
	case p.Key == "":
		return fmt.Sprintf("id %d: %s", p.ID, p.Text)
	}
	return fmt.Sprintf("id %d, %.200q of %.200q: %s", p.ID, p.Key, p.Name, p.Text)
}

// Check yields everything that is inconsistent inside the store, in what the buckets say of each other, and what no write would be
// taken with: labels of too many bytes, text that is not UTF-8. That alone keeps no store from being opened. In a store that
// is open read-only it looks at bbolt's pages first, and goes on only if these are sound; bbolt cannot check them beside
// a writer. An error ends it: ctx's, or a damage that keeps it from reading on.
//
// It reads one state of the store and holds a read transaction while it yields, so the loop must not call the store. It
// keeps some 100 bytes a snapshot.
func (s *Store) Check(ctx context.Context) iter.Seq2[Problem, error] {
	return func(yield func(Problem, error) bool) {
		stopped := false
		err := guardFaults(func() error {
			return s.view(func(btx *bolt.Tx) error {
				c := checker{ctx: ctx, btx: btx, yield: func(p Problem) bool {
					stopped = stopped || !yield(p, nil)
					return !stopped
				}}
				return c.run()
			})
		})
		if err != nil && !stopped {
			yield(Problem{}, err)
		}
	}
}

// A checker is one run of Check.
type checker struct {
	ctx     context.Context //nolint:containedctx // lives as long as one call of Check
	btx     *bolt.Tx
	yield   func(Problem) bool
	records map[ID]Link
	trash   map[ID]Link
	opening bool // the pages have been checked already, and what breaks no reading does not count
}

// stop is the error of a pass whose caller wants no more problems.
type stop struct{}

func (stop) Error() string { return "stopped" }

// report completes a problem with as much as can be read of the record. Of the id 0, which pages have that are not sound, it reads nothing.
func (c *checker) report(id ID, format string, args ...any) error {
	var sn Snapshot
	if id != 0 {
		sn, _ = record(c.btx, id)
	}
	if !c.yield(Problem{ID: id, Name: sn.Name, Key: sn.Key, Text: fmt.Sprintf(format, args...)}) {
		return stop{}
	}
	return c.ctx.Err()
}

// checkAll returns the first problem that keeps a store whose pages have been checked from being opened. Where there is an agreement, an
// open does not ask it: what is added to Check must break one too, and belongs into forgeries.
func checkAll(btx *bolt.Tx) error {
	var first *Problem
	c := checker{ctx: context.Background(), btx: btx, opening: true, yield: func(p Problem) bool {
		first = &p
		return false
	}}
	if err := c.run(); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if first != nil {
		return fmt.Errorf("%w: %v", ErrDamaged, first)
	}
	return nil
}

func (c *checker) run() error {
	passes := []func() error{
		c.checkPages, c.readRecords, c.readTrash, c.checkKeys, c.checkParents, c.checkChildren, c.checkLabels, c.checkDevices, c.checkProjects,
	}
	var err error
	for _, pass := range passes {
		if err = pass(); err != nil {
			break
		}
	}
	if _, ok := err.(stop); ok { //nolint:errorlint // never wrapped
		return nil
	}
	return err
}

// checkPages runs bbolt's own check. The channel must be drained, as its goroutine uses the transaction.
func (c *checker) checkPages() (err error) {
	if c.opening || !c.btx.DB().IsReadOnly() {
		return nil
	}
	sound := true
	for perr := range c.btx.Check() {
		sound = false
		if err == nil {
			err = c.report(0, "bbolt: %v", perr)
		}
	}
	if err == nil && !sound {
		err = stop{}
	}
	return err
}

// readRecords decodes all records and compares each with its key.
func (c *checker) readRecords() error {
	c.records = map[ID]Link{}
	return c.btx.Bucket(bucketRecords).ForEach(func(k, v []byte) error {
		id, ok := parseKey8(k)
		if !ok || id == 0 { // 0 is no snapshot
			return c.report(0, "a record has the key %x", k)
		}
		sn, err := decodeSnapshot(id, v)
		if err != nil {
			return c.report(id, "%v", err)
		}
		c.records[id] = sn.Link()
		return c.checkRecord(sn)
	})
}

// checkRecord compares a record with what should lead to it.
func (c *checker) checkRecord(sn Snapshot) error {
	id := sn.ID
	if sequence := c.btx.Bucket(bucketRecords).Sequence(); uint64(id) > sequence {
		return c.report(id, "the id is above the sequence %d and could be given again", sequence)
	}
	if at, err := lookup(c.btx, sn.Name, sn.Key); err != nil || at != id {
		return c.report(id, "its key does not lead to it")
	}
	if sn.Parent == "" {
		if err := checkTemplate(c.btx, sn); err != nil {
			return c.report(id, "it shows no parent and has one: %v", err)
		}
	} else if at, err := lookup(c.btx, sn.Name, sn.Parent); err != nil || at != sn.ParentID {
		return c.report(id, "the parent %.200q has not the id %d", sn.Parent, sn.ParentID)
	}
	if err := checkProject(sn.Placement); err != nil {
		return c.report(id, "%v", err)
	}
	if sn.Placement.Medium == NoMedium && sn.Kind != snapshots.KindView {
		return c.report(id, "it has no content, and is no view")
	}
	for _, key := range labelKeys(sn) {
		if c.btx.Bucket(bucketLabels).Get(key) == nil {
			if err := c.report(id, "a label is missing in the index"); err != nil {
				return err
			}
		}
	}
	if c.opening {
		return c.ctx.Err()
	}
	if err := validate(sn.Name, sn.Key, sn.Labels); err != nil { // one that cannot be sent keeps all others from being listed
		return c.report(id, "%v", err)
	}
	return c.ctx.Err()
}

func (c *checker) readTrash() error {
	c.trash = map[ID]Link{}
	sequence := c.btx.Bucket(bucketRecords).Sequence()
	return c.btx.Bucket(bucketTrash).ForEach(func(k, v []byte) error {
		id, ok := parseKey8(k)
		if !ok {
			return c.report(0, "a trash entry has the key %x", k)
		}
		link, err := decodeLink(id, v)
		if err != nil {
			return c.report(id, "trash: %v", err)
		}
		c.trash[id] = link
		if link.Placement.Medium == NoMedium {
			return c.report(id, "trash without a content")
		}
		if _, ok := c.records[id]; ok {
			return c.report(id, "it has a record and lies in the trash")
		}
		if uint64(id) > sequence {
			return c.report(id, "the id in the trash is above the sequence %d and could be given again", sequence)
		}
		return c.ctx.Err()
	})
}

// checkKeys finds keys that lead nowhere or to another snapshot's record.
func (c *checker) checkKeys() error {
	return c.btx.Bucket(bucketKeys).ForEach(func(k, v []byte) error {
		name, key, _ := bytes.Cut(k, []byte{0})
		id, ok := parseKey8(v)
		if !ok {
			return c.report(0, "the key %.200q of %.200q leads to %x", key, name, v)
		}
		raw := c.btx.Bucket(bucketRecords).Get(v)
		if raw == nil {
			return c.report(id, "the key %.200q of %.200q leads to it, but it has no record", key, name)
		}
		if sn, err := decodeSnapshot(id, raw); err == nil && (sn.Name != string(name) || sn.Key != string(key)) {
			return c.report(id, "the key %.200q of %.200q leads to it, but it is %.200q of %.200q", key, name, sn.Key, sn.Name)
		}
		return c.ctx.Err()
	})
}

// checkParents follows the records alone: each parent is there and committed, and no chain runs in a circle.
func (c *checker) checkParents() error {
	for id, r := range c.records {
		if r.Kind == snapshots.KindUnknown {
			if err := c.report(id, "it has no kind"); err != nil {
				return err
			}
		}
		if r.ParentID == 0 {
			continue
		}
		if err := c.checkParent(id, r); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) checkParent(id ID, r Link) error {
	parent, ok := c.records[r.ParentID]
	if !ok {
		return c.report(id, "the parent id %d has no record", r.ParentID)
	}
	if parent.Kind != snapshots.KindCommitted {
		return c.report(id, "the parent id %d is not committed", r.ParentID)
	}
	if c.btx.Bucket(bucketChildren).Get(childKey(r.ParentID, id)) == nil {
		return c.report(id, "it is not among the children of id %d", r.ParentID)
	}
	if _, err := appendChain(nil, c.btx, id); err != nil {
		return c.report(id, "%v", err)
	}
	return c.ctx.Err()
}

func (c *checker) checkChildren() error {
	return c.btx.Bucket(bucketChildren).ForEach(func(k, _ []byte) error {
		if len(k) != 16 {
			return c.report(0, "a child link has the key %x", k)
		}
		parent, child := ID(binary.BigEndian.Uint64(k)), ID(binary.BigEndian.Uint64(k[8:]))
		if r, ok := c.records[child]; !ok || r.ParentID != parent {
			return c.report(child, "it is listed as a child of id %d and is not", parent)
		}
		return c.ctx.Err()
	})
}

// checkLabels finds index entries without the label that they stand for.
func (c *checker) checkLabels() error {
	return c.btx.Bucket(bucketLabels).ForEach(func(k, _ []byte) error {
		if len(k) < 8 {
			return c.report(0, "the label index has the key %x", k)
		}
		id := ID(binary.BigEndian.Uint64(k[len(k)-8:]))
		raw := c.btx.Bucket(bucketRecords).Get(key8(uint64(id)))
		sn, _ := decodeSnapshot(id, raw) // what is malformed is reported with the records
		for _, key := range labelKeys(sn) {
			if bytes.Equal(key, k) {
				return c.ctx.Err()
			}
		}
		return c.report(id, "the label index has an entry for it that its record has not")
	})
}

// checkDevices compares the device ids with what records and trash say, both ways.
func (c *checker) checkDevices() error {
	owners := map[uint32]ID{}
	note := func(link Link) error {
		if link.Placement.Medium != Volume {
			return nil
		}
		if other, ok := owners[link.Placement.Device]; ok {
			return c.report(link.ID, "its device id %d is that of id %d too", link.Placement.Device, other)
		}
		owners[link.Placement.Device] = link.ID
		if c.btx.Bucket(bucketDevices).Get(key4(link.Placement.Device)) == nil {
			return c.report(link.ID, "its device id %d is not marked as taken", link.Placement.Device)
		}
		return nil
	}
	for _, r := range c.records {
		if err := note(r); err != nil {
			return err
		}
	}
	for _, link := range c.trash {
		if err := note(link); err != nil {
			return err
		}
	}
	return c.btx.Bucket(bucketDevices).ForEach(func(k, v []byte) error {
		id, ok := parseKey8(v)
		if len(k) != 4 || !ok {
			return c.report(0, "the device id %x belongs to %x", k, v)
		}
		if dev := binary.BigEndian.Uint32(k); owners[dev] != id {
			return c.report(id, "the device id %d is marked as its own and is not", dev)
		}
		return c.ctx.Err()
	})
}

func parseKey8(k []byte) (ID, bool) {
	if len(k) != 8 {
		return 0, false
	}
	return ID(binary.BigEndian.Uint64(k)), true
}
