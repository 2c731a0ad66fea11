package dm

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// A Target maps a part of a device.
type Target struct {
	Start  uint64 // sectors from the device's beginning
	Length uint64 // sectors
	Type   string // "thin-pool", at most 15 bytes
	Params string // what the target was made from or, in a status, how it is
}

// Load makes targets the inactive table of a device, in place of one that is loaded already; Resume makes it the active
// one. The targets begin at sector 0 and leave no gap. readOnly makes the device so. The kernel's reason for an EINVAL is
// in its log alone. A thin target whose id the pool does not have is ENODATA.
func (c *Control) Load(name string, readOnly bool, targets ...Target) error {
	req := request{cmd: unix.DM_TABLE_LOAD, op: "load table", name: name, targets: uint32(len(targets))}
	if len(targets) > 0 {
		req.op = "load " + targets[0].Type + " table"
	}
	if readOnly {
		req.flags |= unix.DM_READONLY_FLAG
	}
	for _, t := range targets {
		if err := t.check(); err != nil {
			return req.fail(err)
		}
		req.data = t.appendTo(req.data)
	}
	_, err := c.onDevice(req)
	return err
}

// Clear drops the inactive table of a device. It is no error if there is none.
func (c *Control) Clear(name string) error {
	_, err := c.onDevice(request{cmd: unix.DM_TABLE_CLEAR, op: "clear table", name: name})
	return err
}

// Table returns the active table of a device, as it was loaded; nothing if there is none.
func (c *Control) Table(name string) ([]Target, error) {
	return c.targets(request{op: "table", name: name, flags: unix.DM_STATUS_TABLE_FLAG})
}

// TableStatus returns the state of the targets of a device; nothing if there is no active table. A thin pool commits its
// metadata to answer, and may have to wait for its disk; with noFlush it answers with what it had committed last.
func (c *Control) TableStatus(name string, noFlush bool) ([]Target, error) {
	req := request{op: "status", name: name}
	if noFlush {
		req.flags |= unix.DM_NOFLUSH_FLAG
	}
	return c.targets(req)
}

// targets sends a request that targets answer.
func (c *Control) targets(req request) ([]Target, error) {
	req.cmd, req.room = unix.DM_TABLE_STATUS, smallRoom
	r, err := c.onDevice(req)
	if err != nil {
		return nil, err
	}
	targets, err := decodeTargets(r.data, r.hdr.Target_count)
	if err != nil {
		return nil, req.fail(err)
	}
	return targets, nil
}

// check returns an error if the target would be cut off on the wire.
func (t *Target) check() error {
	switch {
	case t.Type == "" || len(t.Type) >= unix.DM_MAX_TYPE_NAME || strings.Contains(t.Type, "\x00"):
		return invalid("target type %q", t.Type)
	case strings.Contains(t.Params, "\x00"):
		return invalid("parameters %q hold a NUL", t.Params)
	}
	return nil
}

// appendTo appends the target as a struct dm_target_spec and its parameters. Next is relative to the struct itself when
// a table is loaded.
func (t *Target) appendTo(b []byte) []byte {
	spec := unix.DmTargetSpec{
		Sector_start: t.Start,
		Length:       t.Length,
		Next:         uint32(align(unix.SizeofDmTargetSpec + len(t.Params) + 1)),
	}
	copy(spec.Target_type[:], t.Type)
	b = appendRaw(b, spec)
	b = append(b, t.Params...)
	return padTo8(append(b, 0))
}

// decodeTargets decodes count targets. Next is relative to the first of them when a table is read.
func decodeTargets(data []byte, count uint32) ([]Target, error) {
	if uint64(count) > uint64(len(data))/unix.SizeofDmTargetSpec {
		return nil, fmt.Errorf("%d targets in %d bytes: %w", count, len(data), errReply)
	}
	targets := make([]Target, count)
	off := 0
	for i := range targets {
		spec, err := rawAt[unix.DmTargetSpec](data, off)
		if err != nil {
			return nil, err
		}
		t := &targets[i]
		t.Start, t.Length = spec.Sector_start, spec.Length
		if t.Type, err = stringAt(spec.Target_type[:], 0); err != nil {
			return nil, err
		}
		if t.Params, err = stringAt(data, off+unix.SizeofDmTargetSpec); err != nil {
			return nil, err
		}
		// The last one's points behind the data.
		next := uint64(spec.Next)
		if i < len(targets)-1 && (next < uint64(off+unix.SizeofDmTargetSpec) || next > uint64(len(data))) {
			return nil, fmt.Errorf("target at %d of %d bytes after one at %d: %w", next, len(data), off, errReply)
		}
		off = int(next)
	}
	return targets, nil
}
