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

// What is known here of bbolt's file (internal/common: page.go, meta.go, inode.go, bucket.go): numbers are in the byte order
// of the machine, a page begins with a header, and its elements, whose keys and values follow in their order without a gap,
// come next.
const (
	pageHeader  = 16 // id 8, flags 2, count 2, overflow 4
	pageElement = 16 // of a leaf: flags 4, position 4, key size 4, value size 4; of a branch: position 4, key size 4, page 8
	bucketHead  = 16 // root page 8, sequence 8

	branchPage = 0x01
	leafPage   = 0x02
	metaPage   = 0x04

	metaSize    = 64 // magic 4, version 4, page size 4, flags 4, root bucket 16, free list 8, high water mark 8, txid 8, checksum 8
	boltMagic   = 0xED0CDAED
	boltVersion = 2

	maxPageSize = 64 << 10 // that a machine has
)

// A pageChecker reads all pages that a store's file has in use before bbolt does, for which a damaged one is a panic, at
// times in a goroutine of its own, a read from outside of the mapped file, or a walk without an end.
//
// Both meta pages must be sound. A bbolt that finds one damaged takes the other, which may be the state before the last
// write: what was acknowledged last would be gone, and its content be taken for garbage. A crash does not tear a meta page:
// what it writes of one lies in one sector.
type pageChecker struct {
	file     io.ReaderAt
	pageSize uint64
	high     uint64 // pages from here on are in no use
	seen     []bool // by page
}

// checkPages returns what is wrong with a file of that many bytes.
func checkPages(file io.ReaderAt, size uint64) error {
	c := &pageChecker{file: file}
	newest, err := c.readMetas(size)
	if err != nil {
		return err
	}
	c.seen = make([]bool, c.high)
	return c.tree(binary.NativeEndian.Uint64(newest[16:]), nil, nil)
}

// readMetas returns the newer meta and sets what is known from it.
func (c *pageChecker) readMetas(size uint64) (newest []byte, err error) {
	first, err := c.readMeta(0, 0)
	if err != nil {
		return nil, err
	}
	c.pageSize = uint64(binary.NativeEndian.Uint32(first[8:]))
	if bits.OnesCount64(c.pageSize) != 1 || c.pageSize < pageHeader+metaSize || c.pageSize > maxPageSize {
		return nil, fmt.Errorf("page 0: pages of %d bytes", c.pageSize)
	}
	second, err := c.readMeta(1, c.pageSize)
	if err != nil {
		return nil, err
	}
	newest = first
	if binary.NativeEndian.Uint64(second[48:]) > binary.NativeEndian.Uint64(first[48:]) {
		newest = second
	}
	c.high = binary.NativeEndian.Uint64(newest[40:])
	if c.high > size/c.pageSize {
		return nil, fmt.Errorf("the file is cut off: it has %d bytes, and pages of %d up to number %d", size, c.pageSize, c.high)
	}
	return newest, nil
}

func (c *pageChecker) readMeta(id, at uint64) ([]byte, error) {
	page := make([]byte, pageHeader+metaSize)
	if _, err := c.file.ReadAt(page, int64(at)); err != nil {
		return nil, fmt.Errorf("page %d: %w", id, err)
	}
	meta := page[pageHeader:]
	sum := fnv.New64a()
	_, _ = sum.Write(meta[:56])
	switch {
	case binary.NativeEndian.Uint64(page) != id, binary.NativeEndian.Uint16(page[8:]) != metaPage:
		return nil, fmt.Errorf("page %d is no meta page", id)
	case binary.NativeEndian.Uint32(meta) != boltMagic, binary.NativeEndian.Uint32(meta[4:]) != boltVersion:
		return nil, fmt.Errorf("page %d: it is none of bbolt's", id)
	case binary.NativeEndian.Uint64(meta[56:]) != sum.Sum64():
		return nil, fmt.Errorf("page %d: its checksum is wrong", id)
	}
	return meta, nil
}

// tree checks a page and those below it, whose keys are not below low and, unless it is nil, below high.
func (c *pageChecker) tree(id uint64, low, high []byte) error {
	page, err := c.read(id)
	if err != nil {
		return err
	}
	if err := c.elements(page, low, high); err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

// read returns a page, with those that it goes on in. Each is read once: a second time would be a circle.
func (c *pageChecker) read(id uint64) ([]byte, error) {
	if id < 2 || id >= c.high {
		return nil, fmt.Errorf("page %d: there is none", id)
	}
	header := make([]byte, pageHeader)
	if _, err := c.file.ReadAt(header, int64(id*c.pageSize)); err != nil {
		return nil, fmt.Errorf("page %d: %w", id, err)
	}
	pages := 1 + uint64(binary.NativeEndian.Uint32(header[12:]))
	if at := binary.NativeEndian.Uint64(header); at != id || pages > c.high-id {
		return nil, fmt.Errorf("page %d: it says that it is number %d, of %d pages", id, at, pages)
	}
	for i := id; i < id+pages; i++ {
		if c.seen[i] {
			return nil, fmt.Errorf("page %d: something else leads to it too", i)
		}
		c.seen[i] = true
	}
	page := make([]byte, pages*c.pageSize)
	_, err := c.file.ReadAt(page, int64(id*c.pageSize))
	return page, err
}

// elements checks what a page holds: keys that rise, each where bbolt writes it.
func (c *pageChecker) elements(page []byte, low, high []byte) error {
	flags, count := binary.NativeEndian.Uint16(page[8:]), uint64(binary.NativeEndian.Uint16(page[10:]))
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
		keys = append(keys, key)
		if leaf && binary.NativeEndian.Uint32(page[at:]) != 0 {
			if err := c.bucket(value); err != nil {
				return fmt.Errorf("bucket %q: %w", key, err)
			}
		}
	}
	if leaf {
		return nil
	}
	for i, key := range keys {
		next := high
		if i+1 < len(keys) {
			next = keys[i+1]
		}
		if err := c.tree(binary.NativeEndian.Uint64(page[pageHeader+i*pageElement+8:]), key, next); err != nil {
			return err
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
	if root := binary.NativeEndian.Uint64(value); root != 0 {
		if len(value) != bucketHead {
			return fmt.Errorf("its head has %d bytes", len(value))
		}
		return c.tree(root, nil, nil)
	}
	page := value[bucketHead:]
	if len(page) < pageHeader || binary.NativeEndian.Uint64(page) != 0 || binary.NativeEndian.Uint16(page[8:]) != leafPage ||
		binary.NativeEndian.Uint32(page[12:]) != 0 {
		return errors.New("it holds no page")
	}
	return c.elements(page, nil, nil)
}
