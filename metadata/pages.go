package metadata

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// What is known here of bbolt's file (internal/common: page.go, meta.go, inode.go, bucket.go): numbers are in the byte order
// of the machine, a page begins with a header, and its elements, whose keys and values follow in their order without a gap,
// come next.
const (
	pageHeader  = 16 // id 8, flags 2, count 2, overflow 4
	pageElement = 16 // of a leaf: flags 4, position 4, key size 4, value size 4; of a branch: position 4, key size 4, page 8
	bucketHead  = 16 // root page 8, sequence 8
	metaSize    = 64

	branchPage   = 0x01
	leafPage     = 0x02
	metaTypePage = 0x04
)

// A pageChecker reads all pages that a state of a store has in use before bbolt does, for which a damaged one is a panic, at
// times in a goroutine of its own, a read from outside of the mapped file, or a walk without an end. It sums up what they hold.
//
// Whatever pages it passes are a state that bbolt can go on from: each is led to once, from one place, its keys lie where a
// search looks for them, and siblings are of one kind. So where what they hold sums up to what it should, it does not matter
// whether all of them are those that the commit wrote.
type pageChecker struct {
	file   io.ReaderAt
	meta   *metaPage
	seen   []bool // by page
	path   []byte // the bucket that is read: its name
	summer summer
	agreed *agreement
	spare  [][]byte // buffers of a page's size that are not in use
}

// A reading is what a state of a store was found to be.
type reading struct {
	sum    sum
	agrees bool // all that it holds says the same: see agreement
}

// checkPages reads the state that a meta page leads to in a file of that many bytes, or returns what is wrong with it.
func checkPages(file io.ReaderAt, size uint64, m *metaPage) (reading, error) {
	if high := m.high(); high > size/m.pageSize {
		return reading{}, fmt.Errorf("the file is cut off: it has %d bytes, and pages of %d up to number %d", size, m.pageSize, high)
	}
	c := &pageChecker{file: file, meta: m, seen: make([]bool, m.high()), agreed: newAgreement()}
	if _, err := c.tree(m.root(), nil, nil); err != nil {
		return reading{}, err
	}
	return reading{c.summer.sum, c.agreed.holds()}, nil
}

// tree checks a page and those below it, whose keys are not below low and, unless it is nil, below high. It returns the type of
// the page.
func (c *pageChecker) tree(id uint64, low, high []byte) (kind uint16, err error) {
	page, err := c.read(id)
	if err != nil {
		return 0, err
	}
	defer c.release(page)
	if err := c.elements(page, low, high); err != nil {
		return 0, fmt.Errorf("page %d: %w", id, err)
	}
	return pageType(page), nil
}

func pageType(page []byte) uint16 { return binary.NativeEndian.Uint16(page[8:]) }

// read returns a page, with those that it goes on in. Each is read once: a second time would be a circle.
func (c *pageChecker) read(id uint64) ([]byte, error) {
	if id < 2 || id >= c.meta.high() {
		return nil, fmt.Errorf("page %d: there is none", id)
	}
	page := c.buffer()
	if err := readAt(c.file, page, id*c.meta.pageSize); err != nil {
		return nil, fmt.Errorf("page %d: %w", id, err)
	}
	pages := 1 + uint64(binary.NativeEndian.Uint32(page[12:]))
	if at := binary.NativeEndian.Uint64(page); at != id || pages > c.meta.high()-id {
		return nil, fmt.Errorf("page %d: it says that it is number %d, of %d pages", id, at, pages)
	}
	for i := id; i < id+pages; i++ {
		if c.seen[i] {
			return nil, fmt.Errorf("page %d: something else leads to it too", i)
		}
		c.seen[i] = true
	}
	if pages > 1 {
		more := make([]byte, (pages-1)*c.meta.pageSize)
		if err := readAt(c.file, more, (id+1)*c.meta.pageSize); err != nil {
			return nil, fmt.Errorf("page %d: %w", id, err)
		}
		page = append(page, more...)
	}
	return page, nil
}

// buffer returns one of a page's size, for read.
func (c *pageChecker) buffer() (page []byte) {
	if n := len(c.spare); n > 0 {
		page, c.spare = c.spare[n-1], c.spare[:n-1]
		return page
	}
	return make([]byte, c.meta.pageSize)
}

// release takes back what read has returned, once nothing in it is needed.
func (c *pageChecker) release(page []byte) { c.spare = append(c.spare, page[:c.meta.pageSize]) }

// elements checks what a page holds: keys that rise, each where bbolt writes it.
func (c *pageChecker) elements(page []byte, low, high []byte) error {
	flags, count := pageType(page), uint64(binary.NativeEndian.Uint16(page[10:]))
	leaf := flags == leafPage
	if !leaf && (flags != branchPage || count == 0) {
		return fmt.Errorf("it has the type %#x and %d elements", flags, count)
	}
	data := pageHeader + count*pageElement
	if data > uint64(len(page)) {
		return fmt.Errorf("it has %d elements", count)
	}
	var keys [][]byte
	for i := range count {
		at := pageHeader + i*pageElement
		key, value, err := element(page, at, data, leaf)
		if err != nil {
			return fmt.Errorf("element %d: %w", i, err)
		}
		if bytes.Compare(key, low) < 0 || i > 0 && bytes.Equal(key, low) || high != nil && bytes.Compare(key, high) >= 0 {
			return fmt.Errorf("element %d: the key %x is out of order", i, key)
		}
		low, data = key, data+uint64(len(key)+len(value))
		if !leaf {
			keys = append(keys, key)
			continue
		}
		if err := c.leafElement(key, value, binary.NativeEndian.Uint32(page[at:]) != 0); err != nil {
			return err
		}
	}
	return c.children(page, keys, high)
}

// leafElement takes an entry into account, or checks the bucket that it leads to.
func (c *pageChecker) leafElement(key, value []byte, bucket bool) error {
	if !bucket {
		c.summer.add(c.path, key, value)
		c.agreed.entry(c.path, key, value)
		return nil
	}
	outside := c.path
	c.path = key
	if len(outside) > 0 { // none of ours lies in another
		c.path = append(append(outside[:len(outside):len(outside)], 0), key...)
		c.agreed.broken = true
	}
	err := c.bucket(value)
	c.path = outside
	if err != nil {
		return fmt.Errorf("bucket %q: %w", key, err)
	}
	return nil
}

// children checks the pages below a branch, whose keys are given.
func (c *pageChecker) children(page []byte, keys [][]byte, high []byte) error {
	var first uint16
	for i, key := range keys {
		next := high
		if i+1 < len(keys) {
			next = keys[i+1]
		}
		kind, err := c.tree(binary.NativeEndian.Uint64(page[pageHeader+i*pageElement+8:]), key, next)
		if err != nil {
			return err
		}
		if i == 0 {
			first = kind
		}
		if kind != first { // bbolt merges neighbours
			return fmt.Errorf("element %d: a page of the type %#x beside one of %#x", i, kind, first)
		}
	}
	return nil
}

// element returns the key and value of the element at an offset, which are to begin at the offset data.
func element(page []byte, at, data uint64, leaf bool) (key, value []byte, err error) {
	fields := page[at : at+pageElement]
	var valueSize uint64
	if leaf {
		if flags := binary.NativeEndian.Uint32(fields); flags > 1 {
			return nil, nil, fmt.Errorf("it has the flags %#x", flags)
		}
		fields = fields[4:]
		valueSize = uint64(binary.NativeEndian.Uint32(fields[8:]))
	}
	position, keySize := uint64(binary.NativeEndian.Uint32(fields)), uint64(binary.NativeEndian.Uint32(fields[4:]))
	if keySize == 0 || at+position != data || data+keySize+valueSize > uint64(len(page)) {
		return nil, nil, fmt.Errorf("it is said to have %d and %d bytes at %d", keySize, valueSize, at+position)
	}
	return page[data : data+keySize], page[data+keySize : data+keySize+valueSize], nil
}

// bucket checks a bucket by the value that its name leads to. A small one lies in the value itself.
func (c *pageChecker) bucket(value []byte) error {
	if len(value) < bucketHead {
		return errors.New("it has no head")
	}
	sequence := binary.NativeEndian.Uint64(value[8:])
	c.summer.resequence(c.path, 0, sequence)
	if bytes.Equal(c.path, bucketRecords) {
		c.agreed.sequence = ID(sequence)
	}
	if root := binary.NativeEndian.Uint64(value); root != 0 {
		if len(value) != bucketHead {
			return fmt.Errorf("its head has %d bytes", len(value))
		}
		_, err := c.tree(root, nil, nil)
		return err
	}
	page := value[bucketHead:]
	if len(page) < pageHeader || binary.NativeEndian.Uint64(page) != 0 || binary.NativeEndian.Uint16(page[8:]) != leafPage ||
		binary.NativeEndian.Uint32(page[12:]) != 0 {
		return errors.New("it holds no page")
	}
	return c.elements(page, nil, nil)
}
