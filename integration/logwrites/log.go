package logwrites

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
)

// The format is that of struct log_write_super and struct log_write_entry in
// drivers/md/dm-log-writes.c: little-endian, a sector for each, then the data.
const (
	magic   = 0x6a736677736872
	version = 1

	superSize  = 8 + 8 + 8 + 4
	entrySize  = 8 + 8 + 8 + 8
	minSector  = 512
	maxSector  = 64 << 10
	maxEntries = 1 << 24 // more than any log that a test can make
)

// Flags say what an entry is. A write has none or some of them.
type Flags uint64

// The flags of an entry, by their names in the kernel.
const (
	Flush    Flags = 1 << iota // all entries before it are on the disk when it ends
	FUA                        // the entry itself is on the disk when it ends
	Discard                    // without data
	Mark                       // a message to the target, no write
	Metadata                   // a file system's own, as it says
)

// ErrFormat is returned for what is not a log of dm-log-writes, or is damaged.
var ErrFormat = errors.New("not a log of dm-log-writes")

// An Entry is a write, a discard, a flush or a mark. Offsets and lengths are in
// bytes.
type Entry struct {
	Offset int64 // on the device that was recorded
	Length int64
	Flags  Flags
	Mark   string // the text of a mark
	data   int64  // where the data are in the log
}

// Has reports whether an entry has all of these flags.
func (e Entry) Has(flags Flags) bool { return e.Flags&flags == flags }

// Writes reports whether an entry changes what is on the disk.
func (e Entry) Writes() bool { return e.Length > 0 && !e.Has(Mark) }

// A Log is the entries of a log that is recorded no more.
type Log struct {
	Entries []Entry
	Bytes   int64 // that were written
	r       io.ReaderAt
}

// Read reads the entries of a log of size bytes. It reads no data but marks.
func Read(r io.ReaderAt, size int64) (*Log, error) {
	head := make([]byte, superSize)
	if _, err := r.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("%w: its super block: %w", ErrFormat, err)
	}
	le := binary.LittleEndian
	count, sector := le.Uint64(head[16:]), int64(le.Uint32(head[24:]))
	switch {
	case le.Uint64(head) != magic:
		return nil, fmt.Errorf("%w: the magic number is %#x", ErrFormat, le.Uint64(head))
	case le.Uint64(head[8:]) != version:
		return nil, fmt.Errorf("%w of version %d, but %d", ErrFormat, version, le.Uint64(head[8:]))
	case sector < minSector || sector > maxSector || sector&(sector-1) != 0:
		return nil, fmt.Errorf("%w: sectors of %d bytes", ErrFormat, sector)
	case count > maxEntries:
		return nil, fmt.Errorf("%w: %d entries", ErrFormat, count)
	}
	l := &Log{r: r}
	for at := sector; uint64(len(l.Entries)) < count; {
		e, next, err := readEntry(r, at, sector, size)
		if err != nil {
			return nil, fmt.Errorf("entry %d at byte %d: %w", len(l.Entries), at, err)
		}
		if e.Writes() && !e.Has(Discard) {
			l.Bytes += e.Length
		}
		l.Entries, at = append(l.Entries, e), next
	}
	return l, nil
}

// Data returns what an entry writes; a discard and a flush nothing.
func (l *Log) Data(i int) *io.SectionReader {
	e := l.Entries[i]
	if !e.Writes() || e.Has(Discard) {
		return io.NewSectionReader(l.r, 0, 0)
	}
	return io.NewSectionReader(l.r, e.data, e.Length)
}

// readEntry reads the entry at a byte of the log, and returns where the next is.
func readEntry(r io.ReaderAt, at, sector, size int64) (e Entry, next int64, err error) {
	if at > size-sector {
		return Entry{}, 0, fmt.Errorf("%w: it ends after %d bytes", ErrFormat, size)
	}
	head := make([]byte, entrySize)
	if _, err := r.ReadAt(head, at); err != nil {
		return Entry{}, 0, err
	}
	le := binary.LittleEndian
	start, sectors, inline := le.Uint64(head), le.Uint64(head[8:]), le.Uint64(head[24:])
	if most := uint64(math.MaxInt64 / 2 / sector); start > most || sectors > most {
		return Entry{}, 0, fmt.Errorf("%w: %d sectors at %d", ErrFormat, sectors, start)
	}
	e = Entry{Offset: int64(start) * sector, Length: int64(sectors) * sector, Flags: Flags(le.Uint64(head[16:])), data: at + sector}
	next = at + sector
	if !e.Has(Discard) {
		next += e.Length
	}
	if next > size {
		return Entry{}, 0, fmt.Errorf("%w: its data end at byte %d of %d", ErrFormat, next, size)
	}
	if !e.Has(Mark) {
		return e, next, nil
	}
	if inline > uint64(sector-entrySize) {
		return Entry{}, 0, fmt.Errorf("%w: a mark of %d bytes", ErrFormat, inline)
	}
	text := make([]byte, inline)
	_, err = r.ReadAt(text, at+entrySize)
	e.Mark = string(text)
	return e, next, err
}
