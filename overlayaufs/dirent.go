package overlayaufs

import (
	"bytes"
	"encoding/binary"
)

// A dirent is one entry of a directory.
type dirent struct {
	name string
	typ  uint8 // unix.DT_*
}

// direntHeader is the size of a struct linux_dirent64 up to its name: inode and offset of 8 bytes each, the length of
// the record in 2, the type in 1 (getdents64(2)).
const direntHeader = 19

// nextDirent returns the first entry in what getdents64 filled in and the rest after it. It passes over "." and "..".
// At the end the entry has no name.
func nextDirent(buf []byte) (dirent, []byte) {
	for len(buf) > direntHeader {
		size := int(binary.NativeEndian.Uint16(buf[16:]))
		if size <= direntHeader || size > len(buf) {
			break // the kernel writes no such record
		}
		rec := buf[:size]
		buf = buf[size:]
		name, _, _ := bytes.Cut(rec[direntHeader:], []byte{0})
		switch string(name) {
		case "", ".", "..":
		default:
			return dirent{name: string(name), typ: rec[18]}, buf
		}
	}
	return dirent{}, nil
}
