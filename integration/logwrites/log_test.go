package logwrites

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// The files in testdata were made by Linux 6.1: log is the log, disk the disk that
// was recorded, as dd, blkdiscard and dmsetup wrote them.
func mustCaptured(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func mustRead(t *testing.T, data []byte) *Log {
	t.Helper()
	l, err := Read(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestReadCaptured(t *testing.T) {
	l := mustRead(t, mustCaptured(t, "log"))
	for i := range l.Entries {
		l.Entries[i].data = 0
	}
	const sector = minSector
	want := []Entry{
		{Flags: Mark, Mark: "before-the-flush"},
		{Offset: 5 * sector, Length: sector},
		{Offset: 6 * sector, Length: sector},
		{Flags: Flush},
		{Flags: Mark, Mark: "after-the-flush"},
		{Offset: 7 * sector, Length: sector, Flags: FUA},
		{Flags: Flush},
		{Offset: 8 * sector, Length: 8 * sector, Flags: Discard},
		{Offset: 5 * sector, Length: sector},
		{Flags: Mark, Mark: "dm-log-writes-end"},
	}
	if !slices.Equal(l.Entries, want) {
		t.Errorf("got\n%+v, want\n%+v", l.Entries, want)
	}
}

func TestReplayCaptured(t *testing.T) {
	l, want := mustRead(t, mustCaptured(t, "log")), mustCaptured(t, "disk")
	disk, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	// What is discarded has to be zeroed, though it was never written.
	if _, err := disk.WriteAt(bytes.Repeat([]byte{'x'}, 4096), 4096); err != nil {
		t.Fatal(err)
	}
	for i := range l.Entries {
		if err := l.Apply(i, disk); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(disk.Name()); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%v; got %d bytes that differ", err, len(got))
	}
}

func TestFlushedBefore(t *testing.T) {
	l := &Log{Entries: []Entry{{Length: 1}, {Flags: Flush}, {Length: 1, Flags: FUA}, {Length: 1}, {Flags: Flush}, {Flags: Mark}}}
	for n, want := range []int{0, 0, 2, 2, 2, 5, 5} {
		if got := l.FlushedBefore(n); got != want {
			t.Errorf("before %d: %d, want %d", n, got, want)
		}
	}
}

func TestReadRefuses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(b []byte) []byte
	}{
		{"nothing", func([]byte) []byte { return nil }},
		{"another magic number", func(b []byte) []byte { b[0]++; return b }},
		{"another version", func(b []byte) []byte { b[8]++; return b }},
		{"sectors of 513 bytes", func(b []byte) []byte { b[24]++; return b }},
		{"sectors of 0 bytes", func(b []byte) []byte { b[25] = 0; return b }},
		{"too many entries", func(b []byte) []byte { b[23] = 0xff; return b }},
		{"one entry too many", func(b []byte) []byte { b[16]++; return b }},
		{"cut off in an entry", func(b []byte) []byte { return b[:len(b)-1] }},
		{"too many sectors", func(b []byte) []byte { b[512+8+4] = 1; return b }},
		{"so many sectors that they overflow", func(b []byte) []byte { b[512+8+7] = 0x7f; return b }},
		{"a mark longer than its sector", func(b []byte) []byte {
			binary.LittleEndian.PutUint64(b[512+16:], uint64(Mark))
			binary.LittleEndian.PutUint64(b[512+24:], minSector-entrySize+1)
			return b
		}},
	} {
		data := tt.change(mustCaptured(t, "log"))
		if _, err := Read(bytes.NewReader(data), int64(len(data))); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// FuzzRead looks for a log that makes the reader reach outside of it, or read on
// for ever.
func FuzzRead(f *testing.F) {
	f.Add(mustCaptured(f, "log"))
	f.Add(mustCaptured(f, "log")[:1024])
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := Read(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			return
		}
		for i, e := range l.Entries {
			if end := e.data + e.Length; e.Offset < 0 || e.Length < 0 || e.Writes() && !e.Has(Discard) && end > int64(len(data)) {
				t.Errorf("entry %d, %+v, ends at byte %d of %d", i, e, end, len(data))
			}
		}
	})
}
