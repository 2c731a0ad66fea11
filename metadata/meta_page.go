package metadata

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math/bits"
)

const (
	boltMagic   = 0xED0CDAED
	boltVersion = 2

	maxPageSize = 64 << 10 // that a machine has

	// What bbolt has of a meta page lies in the first sector of it, and so do the stamps behind it. A disk writes a sector
	// whole or not at all.
	sectorSize = 512
	stampAt    = 128
	settledAt  = 192
	stampSize  = 8 + 8 + 16 + 8 // magic, transaction, sum, checksum
)

// A version of the store that this program does not know must have another magic: the state before a commit that was cut off
// is found by it, and undoing one is for who knows the version.
var stampMagic = []byte("lamina 1")

// A metaPage is one of the two meta pages of bbolt, which commits write in turn, and with it the state of the store that it
// leads to.
//
// A commit writes its sum of the whole content into the same sector, the stamp, and only then syncs, once, so a power cut may
// leave the sector without pages that it leads to. What is read then has another sum. The stamp stands twice when
// the state was known to be on the disk as a whole: the store is settled, as after Close. What is wrong with that one is damage.
type metaPage struct {
	id       uint64
	pageSize uint64
	meta     []byte // bbolt's: magic 4, version 4, page size 4, flags 4, root bucket 16, free list 8, high water mark 8, txid 8, checksum 8

	stamped bool
	settled bool
	sum     sum // what the state sums up to, if it is stamped
}

func (m *metaPage) root() uint64     { return binary.NativeEndian.Uint64(m.meta[16:]) }
func (m *metaPage) freeList() uint64 { return binary.NativeEndian.Uint64(m.meta[32:]) } // its page, all ones if there is none
func (m *metaPage) high() uint64     { return binary.NativeEndian.Uint64(m.meta[40:]) } // pages from here on are in no use
func (m *metaPage) txid() uint64     { return binary.NativeEndian.Uint64(m.meta[48:]) }

// readMetas returns the newer and the older meta page.
//
// Both must be sound. A bbolt that finds one damaged takes the other, which may be the state before the last write: what was
// acknowledged last would be gone, and its content be taken for garbage. A crash does not tear a meta page: what it writes of
// one lies in one sector.
func readMetas(file io.ReaderAt) (newest, before *metaPage, err error) {
	newest, err = readMeta(file, 0, 0)
	if err != nil {
		return nil, nil, err
	}
	if size := newest.pageSize; bits.OnesCount64(size) != 1 || size < sectorSize || size > maxPageSize {
		return nil, nil, fmt.Errorf("page 0: pages of %d bytes", size)
	}
	before, err = readMeta(file, 1, newest.pageSize)
	if err != nil {
		return nil, nil, err
	}
	if before.pageSize != newest.pageSize {
		return nil, nil, fmt.Errorf("page 1: pages of %d bytes, and of %d by page 0", before.pageSize, newest.pageSize)
	}
	if before.txid() > newest.txid() {
		newest, before = before, newest
	}
	return newest, before, nil
}

func readMeta(file io.ReaderAt, id, pageSize uint64) (*metaPage, error) {
	sector := make([]byte, sectorSize)
	if err := readAt(file, sector, id*pageSize); err != nil {
		return nil, fmt.Errorf("page %d: %w", id, err)
	}
	meta := sector[pageHeader : pageHeader+metaSize]
	switch {
	case binary.NativeEndian.Uint64(sector) != id, binary.NativeEndian.Uint16(sector[8:]) != metaTypePage:
		return nil, fmt.Errorf("page %d is no meta page", id)
	case binary.NativeEndian.Uint32(meta) != boltMagic, binary.NativeEndian.Uint32(meta[4:]) != boltVersion:
		return nil, fmt.Errorf("page %d: it is none of bbolt's", id)
	case binary.NativeEndian.Uint64(meta[56:]) != fnvSum(meta[:56]):
		return nil, fmt.Errorf("page %d: its checksum is wrong", id)
	}
	m := &metaPage{id: id, pageSize: uint64(binary.NativeEndian.Uint32(meta[8:])), meta: meta}
	m.sum, m.stamped = readStamp(sector[stampAt:], m.txid())
	if settled, ok := readStamp(sector[settledAt:], m.txid()); ok {
		m.sum, m.stamped, m.settled = settled, true, true
	}
	return m, nil
}

// readStamp returns the sum of a stamp of that transaction. bbolt writes a meta page with zeros behind its own part, so there
// is none before ours is written.
func readStamp(b []byte, txid uint64) (s sum, ok bool) {
	s = sum{binary.BigEndian.Uint64(b[16:]), binary.BigEndian.Uint64(b[24:])}
	return s, bytes.Equal(b[:stampSize], appendStamp(nil, txid, s))
}

// appendStamp makes a stamp in the room that an empty b has.
func appendStamp(b []byte, txid uint64, s sum) []byte {
	b = append(b, stampMagic...)
	b = binary.BigEndian.AppendUint64(b, txid)
	b = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, s.high), s.low)
	return binary.BigEndian.AppendUint64(b, fnvSum(b))
}

func fnvSum(b []byte) uint64 {
	h := fnv.New64a()
	_, _ = h.Write(b)
	return h.Sum64()
}

// A judgement says which state of a store to open.
type judgement struct {
	page *metaPage // the state
	reading

	cutOff *metaPage // the commit after it, which did not reach the disk as a whole; nil if there is none
	missed error     // what is missing of that one
}

// judge reads the newest state of a file of that many bytes, and the one before where the commit that made the newest was cut
// off. That one was durable as a whole before the commit began, and bbolt writes no page of it in the commit. It returns what
// is wrong if the file has neither, or was settled.
func judge(file io.ReaderAt, size uint64) (judgement, error) {
	newest, before, err := readMetas(file)
	if err != nil {
		return judgement{}, err
	}
	// A store of an older version has no stamps. Once a commit has been stamped, one of the two meta pages always is, and what
	// has none was cut off.
	r, err := newest.check(file, size, before.stamped)
	if err == nil {
		return judgement{page: newest, reading: r}, nil
	}
	if unread(err) || newest.settled || !before.undoable(newest) {
		return judgement{}, err
	}
	r, beforeErr := before.check(file, size, true)
	if unread(beforeErr) {
		return judgement{}, beforeErr
	}
	if beforeErr != nil {
		return judgement{}, errors.Join(err, fmt.Errorf("the state before: %w", beforeErr))
	}
	return judgement{page: before, reading: r, cutOff: newest, missed: err}, nil
}

// undoable reports whether a state can be the one before a commit that was cut off. Undoing that makes a state that is older
// still, so there must be a number for it.
func (m *metaPage) undoable(cutOff *metaPage) bool {
	return m.stamped && m.txid() > 0 && m.txid()+1 == cutOff.txid()
}

// check reads the whole state. One that is not what its stamp says is an error.
func (m *metaPage) check(file io.ReaderAt, size uint64, mustBeStamped bool) (reading, error) {
	if mustBeStamped && !m.stamped {
		return reading{}, fmt.Errorf("the sum of transaction %d is missing", m.txid())
	}
	r, err := checkPages(file, size, m)
	if err != nil {
		return reading{}, err
	}
	if m.stamped && r.sum != m.sum {
		return reading{}, fmt.Errorf("what it holds is not what transaction %d has left", m.txid())
	}
	return r, nil
}

// undone returns the sector to put in the place of the one of the commit that was cut off: it leads to the state before, as
// one that is older still, so that the next commit is written there.
func (j judgement) undone() []byte {
	sector := make([]byte, sectorSize)
	binary.NativeEndian.PutUint64(sector, j.cutOff.id)
	binary.NativeEndian.PutUint16(sector[8:], metaTypePage)
	meta := sector[pageHeader : pageHeader+metaSize]
	copy(meta, j.page.meta)
	txid := j.page.txid() - 1
	binary.NativeEndian.PutUint64(meta[48:], txid)
	binary.NativeEndian.PutUint64(meta[56:], fnvSum(meta[:56]))
	copy(sector[stampAt:], appendStamp(nil, txid, j.sum))
	return sector
}
