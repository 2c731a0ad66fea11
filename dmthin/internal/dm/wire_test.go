package dm

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A rawMessage is a struct dm_ioctl and its data, written down by the offsets of the C header rather than by our own struct.
type rawMessage struct {
	minor    uint32
	size     uint32 // 0: the header and the data
	start    uint32 // 0: behind the header
	targets  uint32
	open     uint32
	flags    uint32
	event    uint32
	dev      uint64
	name     string
	uuid     string
	data     []byte
	trailing int // zero bytes behind data
}

func (m rawMessage) bytes() []byte {
	b := make([]byte, 312+len(m.data)+m.trailing)
	if m.size == 0 {
		m.size = uint32(len(b))
	}
	if m.start == 0 {
		m.start = 312
	}
	e := binary.NativeEndian
	e.PutUint32(b[0:], 4)
	e.PutUint32(b[4:], m.minor)
	e.PutUint32(b[12:], m.size)
	e.PutUint32(b[16:], m.start)
	e.PutUint32(b[20:], m.targets)
	e.PutUint32(b[24:], m.open)
	e.PutUint32(b[28:], m.flags)
	e.PutUint32(b[32:], m.event)
	e.PutUint64(b[40:], m.dev)
	copy(b[48:176], m.name)
	copy(b[176:305], m.uuid)
	copy(b[312:], m.data)
	return b
}

// layout returns values of 32 and 64 bits and strings one after the other, as the kernel lays them out.
func layout(values ...any) []byte {
	var b []byte
	for _, v := range values {
		switch v := v.(type) {
		case uint32:
			b = binary.NativeEndian.AppendUint32(b, v)
		case uint64:
			b = binary.NativeEndian.AppendUint64(b, v)
		case string:
			b = append(b, v...)
		default:
			panic(v)
		}
	}
	return b
}

// An exchange is a request that is expected, and what the kernel answers.
type exchange struct {
	cmd   uint
	want  []byte // nil: anything
	reply []byte // nil: the request comes back
	err   error
}

// tWire returns a Control on a wire that plays these exchanges, all of them.
func tWire(t *testing.T, script ...exchange) *Control {
	t.Helper()
	n := 0
	t.Cleanup(func() {
		if n != len(script) {
			t.Errorf("%d requests, expected %d", n, len(script))
		}
	})
	return newControl(func(cmd uint, buf []byte) error {
		if n == len(script) {
			t.Fatalf("request %#x too many: %q", cmd, buf)
		}
		x := script[n]
		n++
		if cmd != x.cmd {
			t.Errorf("request %d is %#x, expected %#x", n, cmd, x.cmd)
		}
		if x.want != nil && !bytes.Equal(buf, x.want) {
			t.Errorf("request %d is\n%q, expected\n%q", n, buf, x.want)
		}
		if len(x.reply) > len(buf) {
			t.Fatalf("request %d offers %d bytes for a reply of %d", n, len(buf), len(x.reply))
		}
		copy(buf, x.reply)
		return x.err
	})
}

// tCaptured returns a reply of a Linux 6.1 kernel from testdata.
func tCaptured(tb testing.TB, name string) []byte {
	tb.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name+".reply"))
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// full is the reply to a request whose buffer is too small.
func full(request rawMessage) []byte {
	request.flags |= unix.DM_BUFFER_FULL_FLAG
	return request.bytes()
}
