package dmthin

import (
	"bytes"
	"fmt"
)

// What of a device must be zero for it to be blank: what file systems, volume managers and partition tables are known by
// lies there.
const (
	blankBegin = mebibyte + 64<<10 // bytes
	blankEnd   = mebibyte
)

// signatures are what is known by bytes at the beginning of a device, those that more may have last. They are for the
// message alone.
var signatures = []struct {
	offset int
	bytes  string
	what   string
}{
	{0, "LUKS\xba\xbe", "an encrypted volume (LUKS)"},
	{0, "XFSB", "an xfs file system"},
	{0x438, "\x53\xef", "an ext2, ext3 or ext4 file system"},
	{0x10040, "_BHRfS_M", "a btrfs file system"},
	{512, "LABELONE", "an LVM physical volume"},
	{4096 - 10, "SWAPSPACE2", "swap space"},
	{4096 - 10, "S1SUSPEND", "swap space with a suspended system"},
	{0, "\xfc\x4e\x2b\xa9", "a part of a RAID (md)"},
	{4096, "\xfc\x4e\x2b\xa9", "a part of a RAID (md)"},
	{offsetMagic, "\xba\x52\x9c\x01\x00\x00\x00\x00", "the metadata of a thin pool"},
	{512, "EFI PART", "a partition table (GPT)"},
	{510, "\x55\xaa", "a partition table or a boot sector"},
}

// describe says what lies in the first or last bytes of a device, "" if nothing.
func describe(begin, end []byte, endOffset uint64) string {
	at := firstNonZero(begin)
	if at < 0 {
		if last := firstNonZero(end); last >= 0 {
			return fmt.Sprintf("data at byte %d, near its end (a RAID, or the second copy of a partition table?)", endOffset+uint64(last))
		}
		return ""
	}
	for _, s := range signatures {
		if s.offset < len(begin) && bytes.HasPrefix(begin[s.offset:], []byte(s.bytes)) {
			return s.what
		}
	}
	return fmt.Sprintf("data at byte %d", at)
}

func firstNonZero(b []byte) int {
	return bytes.IndexFunc(b, func(r rune) bool { return r != 0 })
}
