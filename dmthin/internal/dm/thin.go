package dm

import (
	"fmt"
	"strings"
)

// MaxThinID is the highest id of a thin device: MAX_DEV_ID in drivers/md/dm-thin.c.
const MaxThinID = 1<<24 - 1

// A ThinPool describes a target of type thin-pool, which keeps thin devices.
type ThinPool struct {
	Metadata DevNum // where the pool keeps its btrees; its first 4096 bytes are zero to make a new pool
	Data     DevNum // where it keeps blocks

	BlockSectors   uint64 // sectors of a block: a multiple of 128 (64 KiB) up to 2097152 (1 GiB), fixed for the pool's life
	LowWaterBlocks uint64 // an event comes, once until the next resume, when fewer blocks than that are free

	SkipBlockZeroing  bool // do not zero a block before a part of it is written
	IgnoreDiscard     bool // thin devices refuse discards
	NoDiscardPassdown bool // a discard frees blocks, and is not passed on to the data device
	ReadOnly          bool // nothing changes the metadata
	ErrorIfNoSpace    bool // a write that finds no free block fails at once, rather than after the kernel's timeout of 60 s
}

// Target returns the pool as the only target of a device of length sectors. Params are the words that [Control.Table]
// returns for it, so that the two can be compared.
func (p ThinPool) Target(length uint64) Target {
	// In the order, and with the space after each word, in which emit_flags in drivers/md/dm-thin.c writes them.
	var features strings.Builder
	count := 0
	for _, f := range []struct {
		on   bool
		word string
	}{
		{p.SkipBlockZeroing, "skip_block_zeroing"},
		{p.IgnoreDiscard, "ignore_discard"},
		{p.NoDiscardPassdown, "no_discard_passdown"},
		{p.ReadOnly, "read_only"},
		{p.ErrorIfNoSpace, "error_if_no_space"},
	} {
		if f.on {
			count++
			features.WriteString(f.word + " ")
		}
	}
	params := fmt.Sprintf("%s %s %d %d %d %s", p.Metadata, p.Data, p.BlockSectors, p.LowWaterBlocks, count, features.String())
	return Target{Length: length, Type: "thin-pool", Params: params}
}

// A Thin describes a target of type thin: a volume of a pool.
type Thin struct {
	Pool           DevNum
	ID             uint32
	ExternalOrigin DevNum // a read-only device that is read where the volume has no block; none if zero
}

// Target returns the volume as the only target of a device of length sectors. The pool does not know how long its
// volumes are.
func (t Thin) Target(length uint64) Target {
	params := fmt.Sprintf("%s %d", t.Pool, t.ID)
	if !t.ExternalOrigin.IsZero() {
		params += " " + t.ExternalOrigin.String()
	}
	return Target{Length: length, Type: "thin", Params: params}
}
