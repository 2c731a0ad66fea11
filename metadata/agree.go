package metadata

import (
	"bytes"
	"encoding/binary"
	"hash/maphash"
	"slices"

	"github.com/containerd/containerd/v2/core/snapshots"
	"google.golang.org/protobuf/encoding/protowire"
)

// An agreement finds out, from the entries of a state as they go by, in any order, whether Check would find nothing that keeps the
// store from being opened. It looks nothing up: what a record wants to be found in other buckets is added to a balance, and what
// these have is taken from it. So it takes a fraction of Check's time. Where there is none, Check decides, and says what is wrong.
type agreement struct {
	broken   bool
	sequence ID // of the records
	highest  ID // of all that has gone by
	nodes    map[ID]node
	projects map[uint32]struct{}

	// balance is the sum, modulo 2^64, of a hash of each entry that is wanted, less that of each that is there. Nobody knows the
	// seed of the hash before, so who forges a store cannot make wrong entries that come to 0.
	balance uint64
	hash    maphash.Hash
	buf     []byte
	indexed []indexedValue // of the record that goes by
	trashed []ID
}

// A node is what a chain is checked with.
type node struct {
	parent   ID
	key      uint64 // a hash of its snapshotter name and key
	upon     uint64 // that of its parent, as its record says; 0 if that names none
	kind     snapshots.Kind
	template bool
	length   int // of the chain from it to the base, 0 before that is known
}

type indexedValue struct {
	tag   byte
	value []byte
}

func newAgreement() *agreement {
	return &agreement{nodes: map[ID]node{}, projects: map[uint32]struct{}{}}
}

// entry takes one of a bucket.
func (a *agreement) entry(bucket, k, v []byte) {
	if a.broken {
		return
	}
	switch string(bucket) {
	case string(bucketRecords):
		a.record(k, v)
	case string(bucketTrash):
		a.trash(k, v)
	case string(bucketKeys), string(bucketDevices):
		a.must(len(v) == 8)
		a.balance -= a.sum(bucket, k, v)
	case string(bucketChildren), string(bucketLabels):
		a.balance -= a.sum(bucket, k, nil)
	}
}

// holds reports whether all agree, when all have gone by.
func (a *agreement) holds() bool {
	for _, id := range a.trashed {
		_, recorded := a.nodes[id]
		a.must(!recorded)
	}
	return !a.broken && a.balance == 0 && a.highest <= a.sequence && a.chains()
}

// must breaks the agreement if something is not so.
func (a *agreement) must(ok bool) { a.broken = a.broken || !ok }

// sum is the hash of an entry. No two are the same bytes: the values of a bucket have one length, or do not count, and no bucket's
// name begins another's.
func (a *agreement) sum(bucket, key, value []byte) uint64 {
	a.hash.Reset()
	_, _ = a.hash.Write(bucket)
	_, _ = a.hash.Write(key)
	_, _ = a.hash.Write(value)
	return a.hash.Sum64()
}

func (a *agreement) record(k, v []byte) {
	id, ok := parseKey8(k)
	b, err := unseal(id, v)
	if !ok || err != nil || id == 0 {
		a.broken = true
		return
	}
	a.highest = max(a.highest, id)
	link := Link{ID: id}
	var name, key, parent []byte
	a.indexed = a.indexed[:0]
	err = eachField(b, func(num protowire.Number, number uint64, data []byte) error {
		switch num {
		case fieldName:
			name = data
		case fieldKey:
			key = data
		case fieldParent:
			parent = data
		case fieldLabel:
			return a.label(data)
		case fieldCreated, fieldUpdated, fieldUsageSize, fieldInodes:
		default:
			return setLinkField(num, number, &link.Kind, &link.ParentID, &link.Placement)
		}
		return nil
	})
	a.must(err == nil && link.Kind != snapshots.KindUnknown && bytes.IndexByte(name, 0) < 0)
	a.must(link.Placement.Medium != NoMedium || link.Kind == snapshots.KindView)

	n := node{parent: link.ParentID, kind: link.Kind, template: string(name) == Templates}
	if len(parent) > 0 {
		a.must(link.ParentID != 0)
		n.upon = a.sum(nil, a.nameKey(name, parent), nil)
	}
	full := a.nameKey(name, key)
	n.key = a.sum(nil, full, nil)
	a.nodes[id] = n

	a.balance += a.sum(bucketKeys, full, k)
	if link.ParentID != 0 {
		a.buf = binary.BigEndian.AppendUint64(a.buf[:0], uint64(link.ParentID))
		a.balance += a.sum(bucketChildren, append(a.buf, k...), nil)
	}
	for _, l := range a.indexed {
		a.buf = append(appendLabelPrefix(a.buf[:0], l.tag, name, l.value), k...)
		a.balance += a.sum(bucketLabels, a.buf, nil)
	}
	a.content(k, link.Placement)
}

// nameKey is nameKey of tx.go, in buf: it is good until buf is used again.
func (a *agreement) nameKey(name, key []byte) []byte {
	a.buf = append(append(append(a.buf[:0], name...), 0), key...)
	return a.buf
}

// label notes one that is in the index. One that stands twice has its last value, as where a record is decoded.
func (a *agreement) label(b []byte) error {
	k, v, err := decodeLabel(b)
	if tag, ok := indexedLabels[string(k)]; ok {
		a.indexed = slices.DeleteFunc(a.indexed, func(was indexedValue) bool { return was.tag == tag })
		a.indexed = append(a.indexed, indexedValue{tag, v})
	}
	return err
}

func (a *agreement) trash(k, v []byte) {
	id, ok := parseKey8(k)
	link, err := decodeLink(id, v)
	a.trashed = append(a.trashed, id)
	a.highest = max(a.highest, id)
	a.must(ok && err == nil && link.Placement.Medium != NoMedium)
	a.content(k, link.Placement)
}

// content takes the numbers that a content with the key k has.
func (a *agreement) content(k []byte, p Placement) {
	if p.Medium == Volume {
		a.buf = binary.BigEndian.AppendUint32(a.buf[:0], p.Device)
		a.balance += a.sum(bucketDevices, a.buf, k)
	}
	if p.Project != 0 {
		_, taken := a.projects[p.Project]
		a.projects[p.Project] = struct{}{}
		a.must(!taken && checkProject(p) == nil)
	}
}

// chains reports whether each parent is there, is committed and is the one that is named, and each chain has an end.
func (a *agreement) chains() bool {
	var path []ID
	for id := range a.nodes {
		path = path[:0]
		n := a.nodes[id]
		for ; n.length == 0 && n.parent != 0; id, n = n.parent, a.nodes[n.parent] {
			if path = append(path, id); len(path) > MaxChain || !a.uponRight(n) {
				return false
			}
		}
		length := max(n.length, 1)
		for _, id := range slices.Backward(path) {
			length++
			n := a.nodes[id]
			n.length = length
			a.nodes[id] = n
		}
		if length > MaxChain {
			return false
		}
	}
	return true
}

// uponRight reports whether a node that has a parent is upon what it may be: the one that it names, or a template.
func (a *agreement) uponRight(n node) bool {
	parent, ok := a.nodes[n.parent]
	if !ok || parent.kind != snapshots.KindCommitted {
		return false
	}
	if n.upon == 0 {
		return parent.template
	}
	return n.upon == parent.key
}
