package dm

import (
	"fmt"
	"strconv"
	"strings"
)

// A PoolMode is what a pool can still do. The words are those of pool_status in drivers/md/dm-thin.c.
type PoolMode int

// The modes of a pool.
const (
	PoolReadWrite      PoolMode = iota // "rw"
	PoolReadOnly                       // "ro": asked for, or forced by a metadata failure
	PoolOutOfDataSpace                 // "out_of_data_space": writes to new blocks wait or fail
	PoolFailed                         // "Fail": no I/O at all; the rest of the status is unknown
	PoolError                          // "Error": the kernel could not read the state; the rest of the status is unknown
)

// String returns the kernel's word for the mode.
func (m PoolMode) String() string {
	if m < 0 || int(m) >= len(poolModes) {
		return "PoolMode(" + strconv.Itoa(int(m)) + ")"
	}
	return poolModes[m]
}

// A DiscardMode is what a pool does with discards.
type DiscardMode int

// The discard modes.
const (
	DiscardPassdown   DiscardMode = iota // blocks are freed, and discarded on the data device
	DiscardNoPassdown                    // blocks are freed
	DiscardIgnored                       // nothing happens
)

// String returns the kernel's word for the mode.
func (m DiscardMode) String() string {
	if m < 0 || int(m) >= len(discardModes) {
		return "DiscardMode(" + strconv.Itoa(int(m)) + ")"
	}
	return discardModes[m]
}

var (
	poolModes    = [...]string{"rw", "ro", "out_of_data_space", "Fail", "Error"}
	discardModes = [...]string{"discard_passdown", "no_discard_passdown", "ignore_discard"}
	noSpaceModes = [...]string{"queue_if_no_space", "error_if_no_space"}
	checkStates  = [...]string{"-", "needs_check"}
)

// A PoolStatus is the state of a thin pool.
type PoolStatus struct {
	TransactionID uint64

	MetadataUsed, MetadataTotal uint64 // blocks of 4096 bytes
	DataUsed, DataTotal         uint64 // blocks of the pool's block size

	HeldRoot       uint64 // block of 4096 bytes where the reserved metadata snapshot begins; 0 if there is none
	Mode           PoolMode
	Discard        DiscardMode // what the pool does, which depends on the data device too
	ErrorIfNoSpace bool        // what a full pool does: fail writes at once, or queue them for a time
	NeedsCheck     bool        // the metadata are to be checked before the pool can be written again

	// An event comes when fewer blocks of metadata are free; 0 where the kernel does not say (before Linux 4.18).
	MetadataLowWater uint64
}

// A ThinStatus is the state of a thin volume.
type ThinStatus struct {
	Mode          ThinMode
	MappedSectors uint64 // how much of the volume has blocks, be they its own or shared
	HighestMapped uint64 // the last sector that has a block; 0 if none has
}

// A ThinMode says whether the state of a volume is known.
type ThinMode int

// The modes of a volume.
const (
	ThinActive ThinMode = iota
	ThinNone            // "-": the target has no volume
	ThinFailed          // "Fail": the pool has failed
	ThinError           // "Error": the kernel could not read the state
)

// PoolStatus returns the state of the thin pool that is the only target of a device, as it was last committed: asking
// does not make the pool write.
func (c *Control) PoolStatus(name string) (PoolStatus, error) {
	return oneStatus(c, name, "thin-pool", ParsePoolStatus)
}

// ThinStatus returns the state of the thin volume that is the only target of a device.
func (c *Control) ThinStatus(name string) (ThinStatus, error) {
	return oneStatus(c, name, "thin", ParseThinStatus)
}

// oneStatus parses the status of a device that has one target of the type typ.
func oneStatus[T any](c *Control, name, typ string, parse func(string) (T, error)) (status T, err error) {
	targets, err := c.TableStatus(name, true)
	if err != nil {
		return status, err
	}
	if len(targets) != 1 || targets[0].Type != typ {
		return status, &OpError{Op: "status", Device: name, Err: invalid("the device is not a %s", typ)}
	}
	if status, err = parse(targets[0].Params); err != nil {
		return status, &OpError{Op: "status", Device: name, Err: err}
	}
	return status, nil
}

// ParsePoolStatus parses the status line of a thin-pool target:
//
//	<transaction id> <used>/<total metadata blocks> <used>/<total data blocks> <held root or ->
//	<mode> <discard mode> <no space mode> [<needs_check or -> [<metadata low water mark>]]
//
// or "Fail" or "Error". Later kernels may add words, which it passes over.
func ParsePoolStatus(line string) (PoolStatus, error) {
	switch line {
	case "Fail":
		return PoolStatus{Mode: PoolFailed}, nil
	case "Error":
		return PoolStatus{Mode: PoolError}, nil
	}
	p := words{rest: strings.Fields(line)}
	s := PoolStatus{TransactionID: p.number()}
	s.MetadataUsed, s.MetadataTotal = p.fraction()
	s.DataUsed, s.DataTotal = p.fraction()
	s.HeldRoot = p.numberOrDash()
	s.Mode = PoolMode(p.oneOf(poolModes[:PoolFailed]))
	s.Discard = DiscardMode(p.oneOf(discardModes[:]))
	s.ErrorIfNoSpace = p.oneOf(noSpaceModes[:]) == 1
	if len(p.rest) > 0 {
		s.NeedsCheck = p.oneOf(checkStates[:]) == 1
	}
	if len(p.rest) > 0 {
		s.MetadataLowWater = p.number()
	}
	if p.err != nil {
		return PoolStatus{}, fmt.Errorf("thin-pool status %q: %w", line, p.err)
	}
	return s, nil
}

// ParseThinStatus parses the status line of a thin target: "<mapped sectors> <highest mapped sector or ->", or "-", or
// "Fail", or "Error".
func ParseThinStatus(line string) (ThinStatus, error) {
	switch line {
	case "-":
		return ThinStatus{Mode: ThinNone}, nil
	case "Fail":
		return ThinStatus{Mode: ThinFailed}, nil
	case "Error":
		return ThinStatus{Mode: ThinError}, nil
	}
	p := words{rest: strings.Fields(line)}
	s := ThinStatus{MappedSectors: p.number(), HighestMapped: p.numberOrDash()}
	if p.err != nil {
		return ThinStatus{}, fmt.Errorf("thin status %q: %w", line, p.err)
	}
	return s, nil
}

// words are taken from a status line one by one. The first that is not what it should be sets err.
type words struct {
	rest []string
	err  error
}

// next takes a word.
func (w *words) next() string {
	if len(w.rest) == 0 {
		w.fail("it ends early")
		return ""
	}
	word := w.rest[0]
	w.rest = w.rest[1:]
	return word
}

func (w *words) fail(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf(format, args...)
	}
}

func (w *words) parse(word string) uint64 {
	n, err := strconv.ParseUint(word, 10, 64)
	if err != nil {
		w.fail("%q is not a number", word)
		return 0
	}
	return n
}

func (w *words) number() uint64 { return w.parse(w.next()) }

func (w *words) numberOrDash() uint64 {
	word := w.next()
	if word == "-" {
		return 0
	}
	return w.parse(word)
}

// fraction takes a word like 13/1024.
func (w *words) fraction() (used, total uint64) {
	a, b, _ := strings.Cut(w.next(), "/")
	return w.parse(a), w.parse(b)
}

// oneOf takes one of these words, and returns which.
func (w *words) oneOf(these []string) int {
	word := w.next()
	for i, this := range these {
		if word == this {
			return i
		}
	}
	w.fail("%q is none of %s", word, strings.Join(these, ", "))
	return 0
}
