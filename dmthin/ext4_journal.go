package dmthin

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// An ext4 whose metadata could not be written in place, as on a full pool, still has them in its journal when it is
// unmounted. But Linux 6.1.176 clears needs_recovery then (seen there; ext4_put_super in fs/ext4/super.c), and the next mount
// throws the journal away: what was synced is lost, whole files of it. The functions here set the flag again before anybody
// mounts it. That is right whenever the journal holds transactions and the flag is clear: an unmount or a freeze that clears it in good order has
// emptied the journal.

// Fields of the superblock of ext4: a copy of where the journal lies, and the checksum of all before it.
const (
	ext4JournalInode  = ext4Super + 0xE0
	ext4JournalBackup = ext4Super + 0xFD  // 1: what follows is there (EXT3_JNL_BACKUP_BLOCKS)
	ext4JournalExtent = ext4Super + 0x10C // i_block of the journal's inode
	ext4FeatureCompat = ext4Super + 0x5C
	ext4FeatureROComp = ext4Super + 0x64
	ext4Checksum      = ext4Super + 0x3FC

	ext4HasJournal   = 0x4   // EXT4_FEATURE_COMPAT_HAS_JOURNAL
	ext4MetadataCsum = 0x400 // EXT4_FEATURE_RO_COMPAT_METADATA_CSUM

	ext4ExtentMagic = 0xF30A

	// The journal's own superblock (journal_superblock_t in include/linux/jbd2.h), big endian.
	journalMagic   = 0xC03B3998
	journalTypeV2  = 4
	journalStartAt = 0x1C // s_start: the block where the log begins, 0 if it is empty
)

// mend sets needs_recovery where it was lost, and reports whether it did. EBUSY says that the device is mounted.
//
// A power cut leaves it set or not; the next mend does the rest.
func (ext4) mend(device string) (mended bool, err error) {
	f, err := openDirect(device, os.O_RDONLY)
	if err != nil {
		return false, err
	}
	_, lost, err := lostJournal(f)
	if err := errors.Join(err, f.Close()); err != nil || !lost {
		return false, err
	}
	// For certain now: who mounts it claims the device, and so does O_EXCL.
	if f, err = openDirect(device, os.O_RDWR|unix.O_EXCL); err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	head, lost, err := lostJournal(f)
	if err != nil || !lost {
		return false, err
	}
	features := binary.LittleEndian.Uint32(head[ext4FeatureIncompat:])
	binary.LittleEndian.PutUint32(head[ext4FeatureIncompat:], features|ext4Recover)
	if binary.LittleEndian.Uint32(head[ext4FeatureROComp:])&ext4MetadataCsum != 0 {
		binary.LittleEndian.PutUint32(head[ext4Checksum:], crc32c(head[ext4Super:ext4Checksum]))
	}
	if _, err := f.WriteAt(head, 0); err != nil {
		return false, fmt.Errorf("mark the journal of %s to be replayed: %w", device, err)
	}
	// The first sync may say what could not be written before, which is why we are here, and the second one does not.
	if f.file.Sync() != nil {
		return true, f.file.Sync()
	}
	return true, nil
}

// lostJournal returns the superblock of an ext4, and whether it passes over a journal that has something in it.
func lostJournal(device directFile) (head []byte, lost bool, err error) {
	head = make([]byte, fsHeadSize)
	if _, err := device.ReadAt(head, 0); err != nil {
		return nil, false, err
	}
	at, ok, err := unrecoveredJournal(head)
	if err != nil || !ok {
		return nil, false, err
	}
	log := make([]byte, directAlign)
	if _, err := device.ReadAt(log, at); err != nil {
		return nil, false, err
	}
	lost = binary.BigEndian.Uint32(log) == journalMagic && binary.BigEndian.Uint32(log[4:]) == journalTypeV2 &&
		binary.BigEndian.Uint32(log[journalStartAt:]) != 0
	return head, lost, nil
}

// unrecoveredJournal returns where the journal lies of an ext4 that does not say that it is to be replayed. One whose journal
// is not in one piece at a known place, as ours are, is passed over.
func unrecoveredJournal(head []byte) (at int64, ok bool, err error) {
	state, err := ext4{}.parse(head)
	if err != nil || state.dirty || state.blockSize < directAlign {
		return 0, false, err
	}
	number := func(offset int) uint32 { return binary.LittleEndian.Uint32(head[offset:]) }
	half := func(offset int) uint16 { return binary.LittleEndian.Uint16(head[offset:]) }
	const extent = ext4JournalExtent
	switch {
	case number(ext4FeatureCompat)&ext4HasJournal == 0, number(ext4JournalInode) == 0, head[ext4JournalBackup] != 1:
		return 0, false, nil
	case half(extent) != ext4ExtentMagic, half(extent+2) == 0, half(extent+6) != 0, number(extent+12) != 0:
		return 0, false, nil // no tree of one level that begins with the first block
	}
	block := uint64(half(extent+18))<<32 | uint64(number(extent+20))
	if block == 0 || block >= state.blocks {
		return 0, false, fmt.Errorf("ext4 with a journal at block %d of %d", block, state.blocks)
	}
	return int64(block * state.blockSize), true, nil
}
