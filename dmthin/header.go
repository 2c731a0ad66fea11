package dmthin

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"reflect"
	"slices"
)

// Each block device of a pool begins with a header of ours, and the part of it that a pool may use begins at headerArea.
//
// A header is one block: the magic, and in little endian its version, its crc32c (with the field itself 0) and the length
// of what follows, a JSON object. A block that has the magic and a wrong crc is one that a power cut tore, or a mark that
// a header will be written: see [blockDevice.wipe].
const (
	headerArea    = mebibyte
	headerSize    = 4096
	headerMagic   = "lamina thin pool"
	headerVersion = 1

	// headerPlaces is how many places a header has, one behind the other: that of an even generation and that of an odd one.
	headerPlaces = 2

	headerOffsetVersion = len(headerMagic)
	headerOffsetCRC     = headerOffsetVersion + 4
	headerOffsetLength  = headerOffsetCRC + 4
	headerOffsetText    = headerOffsetLength + 4

	// maxDevices is for how many a header has room, with paths of some length.
	maxDevices = 16

	maxDeviceSize = 1 << 59 // bytes; maxDevices such sizes do not overflow
)

var (
	// errNoHeader is returned when a block does not have the magic of a header.
	errNoHeader = errors.New("there is no header")

	// errTornHeader is returned when a header is not what was written once.
	errTornHeader = errors.New("its header is damaged")
)

// A header is what a device says of itself and of its pool.
type header struct {
	Index  int    `json:"index"` // of this device among those of the layout
	Layout layout `json:"pool"`
}

// A layout says what the devices of a pool are used for. It is the same on all of them.
type layout struct {
	UUID       string    `json:"uuid"`                 // of the store
	Generation uint64    `json:"generation,omitempty"` // how often it has grown
	Devices    []member  `json:"devices"`
	Metadata   []segment `json:"metadata"` // one after the other
	Data       []segment `json:"data"`
}

// A member is a device as it was when the pool took it, or the last part of it.
type member struct {
	Path string `json:"path"` // for people
	Size uint64 `json:"size"` // bytes
}

// String returns the member as an error names it.
func (m member) String() string {
	return fmt.Sprintf("%s, as it was called when the pool was made, of %d bytes", m.Path, m.Size)
}

// A segment is a part of a device, in bytes.
type segment struct {
	Device int    `json:"device"`
	Offset uint64 `json:"offset"`
	Length uint64 `json:"length"`
}

// newLayout lays a pool out on these devices: the metadata on the first one, the data on what remains of all.
func newLayout(uuid string, devices []member, metadataSize, blockSize uint64) (layout, error) {
	l := layout{UUID: uuid, Devices: devices}
	total := uint64(0)
	for _, d := range devices {
		total += d.Size
	}
	metadata, err := metadataLength(metadataSize, total, blockSize)
	if err != nil {
		return l, err
	}
	l.Metadata = []segment{{Device: 0, Offset: headerArea, Length: metadata}}
	data := uint64(0)
	for i, d := range devices {
		offset := uint64(headerArea)
		if i == 0 { // at a whole mebibyte, as what lies below has large blocks of its own
			offset = divideUp(offset+metadata, mebibyte) * mebibyte
		}
		if d.Size < offset+blockSize {
			return l, fmt.Errorf("%s has %d bytes, and the pool would need more than %d of it for itself", d.Path, d.Size, offset)
		}
		length := (d.Size - offset) / blockSize * blockSize
		l.Data = append(l.Data, segment{Device: i, Offset: offset, Length: length})
		data += length
	}
	if data < minData {
		return l, fmt.Errorf("the devices have room for %d MiB of data, and a pool needs %d", data/mebibyte, minData/mebibyte)
	}
	return l, nil
}

// continues reports whether l is what became of another layout when it grew.
func (l layout) continues(other layout) bool {
	if l.UUID != other.UUID || l.Generation <= other.Generation || len(l.Devices) < len(other.Devices) {
		return false
	}
	for i, d := range other.Devices {
		if l.Devices[i].Path != d.Path || l.Devices[i].Size < d.Size {
			return false
		}
	}
	return continuesSegments(l.Metadata, other.Metadata) && continuesSegments(l.Data, other.Data)
}

// continuesSegments reports whether segments begin with others, of which the last may have become longer.
func continuesSegments(segments, others []segment) bool {
	if len(segments) < len(others) {
		return false
	}
	last := len(others) - 1
	longer := segments[last]
	longer.Length = others[last].Length
	return slices.Equal(segments[:last], others[:last]) && longer == others[last] && segments[last].Length >= longer.Length
}

func (l layout) equal(other layout) bool { return reflect.DeepEqual(l, other) }

// dataSize returns how long the data are, in bytes.
func (l layout) dataSize() (size uint64) {
	for _, s := range l.Data {
		size += s.Length
	}
	return size
}

// check returns an error for what no layout of ours says.
func (h header) check() error {
	l := h.Layout
	switch n := len(l.Devices); {
	case l.UUID == "":
		return errors.New("the uuid is empty")
	case n == 0 || n > maxDevices || h.Index < 0 || h.Index >= n:
		return fmt.Errorf("device %d of %d", h.Index, n)
	case len(l.Metadata) == 0 || len(l.Data) == 0:
		return fmt.Errorf("%d segments of metadata, %d of data", len(l.Metadata), len(l.Data))
	}
	for i, d := range l.Devices {
		if d.Size > maxDeviceSize {
			return fmt.Errorf("device %d has %d bytes", i, d.Size)
		}
	}
	for _, s := range slices.Concat(l.Metadata, l.Data) {
		if s.Device < 0 || s.Device >= len(l.Devices) {
			return fmt.Errorf("a segment on device %d of %d", s.Device, len(l.Devices))
		}
		size := l.Devices[s.Device].Size
		if s.Offset < headerArea || s.Length == 0 || s.Offset > size || s.Length > size-s.Offset || (s.Offset|s.Length)%sector != 0 {
			return fmt.Errorf("a segment of %d bytes at %d of device %d, which has %d", s.Length, s.Offset, s.Device, size)
		}
	}
	return nil
}

// encode returns the header as a block.
func (h header) encode() ([]byte, error) {
	if err := h.check(); err != nil {
		return nil, err
	}
	text, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	if len(text) > headerSize-headerOffsetText {
		return nil, fmt.Errorf("the header of the devices has %d bytes, and room for %d: name the devices by shorter paths", len(text), headerSize-headerOffsetText)
	}
	b := make([]byte, headerSize)
	copy(b, headerMagic)
	binary.LittleEndian.PutUint32(b[headerOffsetVersion:], headerVersion)
	binary.LittleEndian.PutUint32(b[headerOffsetLength:], uint32(len(text)))
	copy(b[headerOffsetText:], text)
	binary.LittleEndian.PutUint32(b[headerOffsetCRC:], headerCRC(b))
	return b, nil
}

// decodeHeader reads a block: errNoHeader, errTornHeader, or what is wrong with it otherwise.
func decodeHeader(b []byte) (header, error) {
	if len(b) != headerSize || !bytes.HasPrefix(b, []byte(headerMagic)) {
		return header{}, errNoHeader
	}
	if binary.LittleEndian.Uint32(b[headerOffsetCRC:]) != headerCRC(b) {
		return header{}, errTornHeader
	}
	if v := binary.LittleEndian.Uint32(b[headerOffsetVersion:]); v != headerVersion {
		return header{}, fmt.Errorf("its header has version %d, and this program knows %d", v, headerVersion)
	}
	n := binary.LittleEndian.Uint32(b[headerOffsetLength:])
	if n > headerSize-uint32(headerOffsetText) {
		return header{}, fmt.Errorf("its header has a text of %d bytes", n)
	}
	var h header
	dec := json.NewDecoder(bytes.NewReader(b[headerOffsetText : headerOffsetText+int(n)]))
	dec.DisallowUnknownFields()
	err := dec.Decode(&h)
	if err == nil {
		err = h.check()
	}
	if err != nil {
		return header{}, fmt.Errorf("its header cannot be read: %w", err)
	}
	return h, nil
}

// headerCRC returns the crc32c of a header's block as if its own field were 0.
func headerCRC(b []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	crc := crc32.Update(0, table, b[:headerOffsetCRC])
	crc = crc32.Update(crc, table, make([]byte, 4))
	return crc32.Update(crc, table, b[headerOffsetLength:])
}
