package metadata

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
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
	freeListPage = 0x10

	maxDepth = 32 // of buckets in each other; a store has 1, and containerd's database 7
)

// A pageChecker reads all pages that a state of a store has in use before bbolt does, for which a damaged one is a panic, at
// times in a goroutine of its own, a read from outside of the mapped file, or a walk without an end. It sums up what they hold.
//
// Whatever pages it passes are a state that bbolt can go on from: each is led to once, from one place, its keys lie where a
// search looks for them, and siblings are of one kind. So where what they hold sums up to what it should, it does not matter
// whether all of them are those that the commit wrote.
//
// Leaves, which nearly all pages are, are read last and in the order of the file, many at once: a start reads from the disk.
type pageChecker struct {
	file   io.ReaderAt
	meta   *metaPage
	seen   []bool // by page
	path   []byte // the bucket that is read: its name
	leaves []laterLeaf
	depth  int // of buckets
	summer summer
	agreed *agreement
}

// A laterLeaf is a page to be read, of the bucket path. Its keys are not below low and, unless it is nil, below high.
type laterLeaf struct {
	id        uint64
	path      []byte
	low, high []byte
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
	_, err := c.tree(m.root(), nil, nil)
	for err == nil && len(c.leaves) > 0 {
		leaves := c.leaves
		c.leaves = nil // more come if one has buckets
		err = c.readLeaves(leaves)
	}
	if err == nil {
		err = c.freeList()
	}
	if err != nil {
		return reading{}, err
	}
	return reading{c.summer.sum, c.agreed.holds()}, nil
}

// tree checks a page and those below it, but for the leaves that are left for later. It returns the type of the page.
func (c *pageChecker) tree(id uint64, low, high []byte) (kind uint16, err error) {
	if err := c.exists(id); err != nil {
		return 0, err
	}
	page, err := c.read(id)
	if err == nil {
		err = c.elements(page, low, high)
	}
	if err != nil {
		return 0, fmt.Errorf("page %d: %w", id, err)
	}
	return pageType(page), nil
}

// read returns a page that exists.
func (c *pageChecker) read(id uint64) ([]byte, error) {
	first := make([]byte, c.meta.pageSize)
	if err := readAt(c.file, first, id*c.meta.pageSize); err != nil {
		return nil, err
	}
	return c.whole(id, first)
}

// exists returns an error if there is no page of that number.
func (c *pageChecker) exists(id uint64) error {
	if id < 2 || id >= c.meta.high() {
		return fmt.Errorf("page %d: there is none", id)
	}
	return nil
}

// readAtOnce is how much of the file is read at once, in bytes; a page may have a quarter of it (maxPageSize).
const readAtOnce = 256 << 10

// readLeaves reads pages that exist, and checks them. It sorts what it is given.
func (c *pageChecker) readLeaves(leaves []laterLeaf) error {
	slices.SortFunc(leaves, func(a, b laterLeaf) int { return cmp.Compare(a.id, b.id) })
	buf, size := make([]byte, readAtOnce), c.meta.pageSize
	for len(leaves) > 0 {
		first, n := leaves[0].id, 1
		for n < len(leaves) && leaves[n].id < first+readAtOnce/size {
			n++
		}
		together := readAt(c.file, buf[:(leaves[n-1].id+1-first)*size], first*size)
		for _, l := range leaves[:n] {
			page := buf[(l.id-first)*size:][:size]
			var err error
			if together != nil { // it may be of a page between them
				err = readAt(c.file, page, l.id*size)
			}
			if err == nil {
				err = c.leaf(l, page)
			}
			if err != nil {
				return fmt.Errorf("bucket %q: page %d: %w", l.path, l.id, err)
			}
		}
		leaves = leaves[n:]
	}
	return nil
}

// leaf checks one whose first page is given.
func (c *pageChecker) leaf(l laterLeaf, first []byte) error {
	page, err := c.whole(l.id, first)
	if err != nil {
		return err
	}
	if kind := pageType(page); kind != leafPage {
		return siblingsError(kind, leafPage)
	}
	c.path = l.path
	return c.elements(page, l.low, l.high)
}

// siblingsError tells of pages below one branch: bbolt merges neighbours.
func siblingsError(kind, other uint16) error {
	return fmt.Errorf("a page of the type %#x beside one of %#x", kind, other)
}

func pageType(page []byte) uint16 { return binary.NativeEndian.Uint16(page[8:]) }

// whole returns a page, whose first one is given, with those that it goes on in. Each is taken once: a second time would be a circle.
func (c *pageChecker) whole(id uint64, first []byte) ([]byte, error) {
	pages := 1 + uint64(binary.NativeEndian.Uint32(first[12:]))
	if at := binary.NativeEndian.Uint64(first); at != id || pages > c.meta.high()-id {
		return nil, fmt.Errorf("it says that it is number %d, of %d pages", at, pages)
	}
	for i := id; i < id+pages; i++ {
		if c.seen[i] {
			return nil, fmt.Errorf("something else leads to page %d too", i)
		}
		c.seen[i] = true
	}
	if pages == 1 {
		return first, nil
	}
	page := make([]byte, pages*c.meta.pageSize)
	return page, readAt(c.file, page, id*c.meta.pageSize)
}

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
	c.path = bytes.Clone(key)
	if len(outside) > 0 { // none of ours lies in another
		c.path = append(append(outside[:len(outside):len(outside)], 0), key...)
		c.agreed.broken = true
	}
	c.depth++
	err := c.bucket(value)
	c.depth--
	c.path = outside
	if err != nil {
		return fmt.Errorf("bucket %q: %w", key, err)
	}
	return nil
}

// freeList checks the list of free pages, if the file has one: bbolt gives those out. A copy that bbolt makes has one, until it is written here.
func (c *pageChecker) freeList() error {
	id := c.meta.freeList()
	if id == math.MaxUint64 {
		return nil
	}
	if err := c.exists(id); err != nil {
		return fmt.Errorf("list of free pages: %w", err)
	}
	page, err := c.read(id)
	if err != nil {
		return fmt.Errorf("list of free pages: page %d: %w", id, err)
	}
	if kind := pageType(page); kind != freeListPage {
		return fmt.Errorf("list of free pages: page %d: it has the type %#x", id, kind)
	}
	count, ids := uint64(binary.NativeEndian.Uint16(page[10:])), page[pageHeader:]
	if count == math.MaxUint16 { // too many for the field: the first number says how many
		count, ids = binary.NativeEndian.Uint64(ids), ids[8:]
	}
	if count > uint64(len(ids)/8) {
		return fmt.Errorf("list of free pages: it has %d in %d bytes", count, len(ids))
	}
	for i := range count {
		free := binary.NativeEndian.Uint64(ids[8*i:])
		if err := c.exists(free); err != nil {
			return fmt.Errorf("list of free pages: %w", err)
		}
		if c.seen[free] {
			return fmt.Errorf("list of free pages: page %d is in use, or named twice", free)
		}
		c.seen[free] = true
	}
	return nil
}

// children checks the pages below a branch, whose keys are given. Of leaves it reads the first, which tells what they all have to be; the
// others wait.
func (c *pageChecker) children(page []byte, keys [][]byte, high []byte) error {
	var first uint16
	for i, key := range keys {
		next := high
		if i+1 < len(keys) {
			next = keys[i+1]
		}
		id := binary.NativeEndian.Uint64(page[pageHeader+i*pageElement+8:])
		if first == leafPage {
			if err := c.exists(id); err != nil {
				return err
			}
			if uint64(len(c.leaves)) >= c.meta.high() {
				return errors.New("it leads to more pages than there are")
			}
			c.leaves = append(c.leaves, laterLeaf{id, c.path, key, next})
			continue
		}
		kind, err := c.tree(id, key, next)
		if err != nil {
			return err
		}
		if i == 0 {
			first = kind
		}
		if kind != first {
			return fmt.Errorf("element %d: %w", i, siblingsError(kind, first))
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
	if c.depth > maxDepth {
		return fmt.Errorf("more than %d buckets in each other", maxDepth)
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
