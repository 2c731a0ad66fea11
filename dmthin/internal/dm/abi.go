package dm

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A wire carries one request to the kernel. buf holds the request and, when wire returns nil, the reply.
type wire func(cmd uint, buf []byte) error

// fileWire returns the wire through an open control device.
func fileWire(f *os.File) (wire, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	return func(cmd uint, buf []byte) error {
		var errno unix.Errno
		err := conn.Control(func(fd uintptr) {
			_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, uintptr(cmd), uintptr(unsafe.Pointer(unsafe.SliceData(buf))))
		})
		if err == nil && errno != 0 {
			err = errno
		}
		return err
	}, nil
}

// abi are the kernel's fixed-size structs and words that requests and replies are made of.
type abi interface {
	unix.DmIoctl | unix.DmTargetSpec | unix.DmTargetDeps | unix.DmTargetMsg | unix.DmTargetVersions | uint32 | uint64
}

// rawBytes returns the memory of v.
func rawBytes[T abi](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}

// appendRaw appends v as the kernel reads it.
func appendRaw[T abi](b []byte, v T) []byte { return append(b, rawBytes(&v)...) }

// rawAt returns the T at offset off of b, or an error if it is not all there.
func rawAt[T abi](b []byte, off int) (v T, err error) {
	if off < 0 || off > len(b) || copy(rawBytes(&v), b[off:]) < int(unsafe.Sizeof(v)) {
		return v, fmt.Errorf("%T at %d of %d bytes: %w", v, off, len(b), errReply)
	}
	return v, nil
}

// stringAt returns the NUL-terminated string at offset off of b.
func stringAt(b []byte, off int) (string, error) {
	if off < 0 || off > len(b) {
		return "", fmt.Errorf("string at %d of %d bytes: %w", off, len(b), errReply)
	}
	s, _, found := bytes.Cut(b[off:], []byte{0})
	if !found {
		return "", fmt.Errorf("string at %d of %d bytes does not end: %w", off, len(b), errReply)
	}
	return string(s), nil
}

// align returns n rounded up to the 8 bytes that the kernel aligns to.
func align(n int) int { return (n + 7) &^ 7 }

// padTo8 appends zeroes up to an aligned length.
func padTo8(b []byte) []byte { return append(b, make([]byte, align(len(b))-len(b))...) }

// A request is what is sent but for the size of its buffer.
type request struct {
	cmd     uint
	op      string // for OpError
	name    string // of the device, or of the target type for DM_GET_TARGET_VERSION; may be empty
	uuid    string // only for DM_DEV_CREATE: elsewhere the kernel would look the device up by it
	flags   uint32
	eventNr uint32
	targets uint32
	data    []byte
	room    int  // bytes to offer for the reply's data at first
	once    bool // the request must not be repeated for want of room
}

// marshal returns a buffer with the request and at least room bytes for data.
func (r *request) marshal(room int) []byte {
	hdr := unix.DmIoctl{
		// The kernel wants its own major and a minor that is not above its own; no request here needs more than 0.
		Version:      [3]uint32{unix.DM_VERSION_MAJOR, 0, 0},
		Data_size:    uint32(unix.SizeofDmIoctl + max(room, len(r.data))),
		Data_start:   unix.SizeofDmIoctl,
		Target_count: r.targets,
		Flags:        r.flags,
		Event_nr:     r.eventNr,
	}
	copy(hdr.Name[:], r.name)
	copy(hdr.Uuid[:], r.uuid)
	buf := make([]byte, hdr.Data_size)
	copy(buf, rawBytes(&hdr))
	copy(buf[hdr.Data_start:], r.data)
	return buf
}

// check returns an error if the kernel would misread or refuse the request's names.
func (r *request) check() error {
	// Limits and forbidden names: check_name in dm-ioctl.c.
	switch {
	case len(r.name) >= unix.DM_NAME_LEN:
		return invalid("name longer than %d bytes", unix.DM_NAME_LEN-1)
	case strings.ContainsAny(r.name, "/\x00"), r.name == unix.DM_CONTROL_NODE, r.name == ".", r.name == "..":
		return invalid("name %q cannot be a device's", r.name)
	case len(r.uuid) >= unix.DM_UUID_LEN:
		return invalid("uuid longer than %d bytes", unix.DM_UUID_LEN-1)
	case strings.Contains(r.uuid, "\x00"):
		return invalid("uuid %q holds a NUL", r.uuid)
	}
	return nil
}

// A reply is what came back. The header's sizes have been checked if data was asked for.
type reply struct {
	hdr  unix.DmIoctl
	name string // hdr.Name
	uuid string // hdr.Uuid
	data []byte // nil if there is none
}

// full reports whether the kernel had more to say than fits.
func (r *reply) full() bool { return r.hdr.Flags&unix.DM_BUFFER_FULL_FLAG != 0 }

// unmarshal decodes a reply. It keeps no reference to parts of buf other than the data.
func unmarshal(buf []byte) (reply, error) {
	hdr, err := rawAt[unix.DmIoctl](buf, 0)
	if err != nil {
		return reply{}, err
	}
	r := reply{hdr: hdr}
	if r.name, err = stringAt(hdr.Name[:], 0); err != nil {
		return reply{}, err
	}
	if r.uuid, err = stringAt(hdr.Uuid[:], 0); err != nil {
		return reply{}, err
	}
	if r.full() {
		return r, nil // the sizes mean nothing then
	}
	size := uint64(hdr.Data_size)
	if size > uint64(len(buf)) {
		return reply{}, fmt.Errorf("data size %d in %d bytes: %w", size, len(buf), errReply)
	}
	// A request that has no data comes back with a size that ends before where data would start.
	if start := uint64(hdr.Data_start); start >= unix.SizeofDmIoctl && start <= size {
		r.data = buf[start:size]
	}
	return r, nil
}
