package dmthin

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const gibibyte = 1 << 30

func testHeader(tb testing.TB, index int) header {
	tb.Helper()
	l, err := newLayout(storeUUID, []member{{"/dev/a", 2*gibibyte + 4096}, {"/dev/b", gibibyte}}, 0, testBlock)
	require.NoError(tb, err)
	return header{Index: index, Layout: l}
}

func TestLayout(t *testing.T) {
	l := testHeader(t, 0).Layout
	metadata := metadataSize(3*gibibyte+4096, testBlock, plannedVolumes)
	require.Equal(t, []segment{{0, mebibyte, metadata}}, l.Metadata)
	begin := divideUp(mebibyte+metadata, mebibyte) * mebibyte
	require.Equal(t, []segment{{0, begin, 2*gibibyte - begin}, {1, mebibyte, gibibyte - mebibyte}}, l.Data)
	require.Equal(t, 3*gibibyte-begin-mebibyte, l.dataSize())

	for says, c := range map[string]struct {
		devices         []member
		metadata, block uint64
	}{
		"room for 197 MiB":  {[]member{{"/dev/a", 200 * mebibyte}}, minMetadata, testBlock},
		"/dev/b has 100000": {[]member{{"/dev/a", gibibyte}, {"/dev/b", 100000}}, minMetadata, testBlock},
		"/dev/a has 104857": {[]member{{"/dev/a", 100 * mebibyte}, {"/dev/b", gibibyte}}, gibibyte, testBlock},
		"size of the pool":  {[]member{{"/dev/a", gibibyte}}, 4096, testBlock},
	} {
		_, err := newLayout(storeUUID, c.devices, c.metadata, c.block)
		require.ErrorContains(t, err, says)
	}
}

func TestHeader(t *testing.T) {
	for i := range 2 {
		want := testHeader(t, i)
		b, err := want.encode()
		require.NoError(t, err)
		require.Len(t, b, headerSize)
		got, err := decodeHeader(b)
		require.NoError(t, err)
		require.Equal(t, want, got)
		require.True(t, got.Layout.equal(testHeader(t, 0).Layout))
	}
	many := make([]member, maxDevices)
	for i := range many {
		many[i] = member{"/dev/disk/by-id/" + strings.Repeat("x", 60), 1 << 50}
	}
	l, err := newLayout(storeUUID, many, 0, testBlock)
	require.NoError(t, err)
	_, err = header{Layout: l}.encode()
	require.NoError(t, err)
	many[0].Path += strings.Repeat("x", 4096)
	_, err = header{Layout: l}.encode()
	require.ErrorContains(t, err, "shorter paths")
}

// Whatever part of a header reaches a disk that has the mark, it is a header, or torn, and never something else.
func TestTornHeader(t *testing.T) {
	whole, err := testHeader(t, 1).encode()
	require.NoError(t, err)
	mark := append([]byte(headerMagic), make([]byte, headerSize-len(headerMagic))...)
	_, err = decodeHeader(mark)
	require.ErrorIs(t, err, errTornHeader)
	for written := range 1 << (headerSize / sector) {
		b := bytes.Clone(mark)
		for i := range headerSize / sector {
			if written&(1<<i) != 0 {
				copy(b[i*sector:(i+1)*sector], whole[i*sector:])
			}
		}
		if _, err := decodeHeader(b); err != nil || !bytes.Equal(b, whole) {
			require.ErrorIs(t, err, errTornHeader)
		}
	}
}

func TestBadHeaders(t *testing.T) {
	_, err := decodeHeader(make([]byte, headerSize))
	require.ErrorIs(t, err, errNoHeader)
	_, err = decodeHeader(nil)
	require.ErrorIs(t, err, errNoHeader)
	for what, break_ := range map[string]func(h *header){
		"uuid is empty":         func(h *header) { h.Layout.UUID = "" },
		"device 2 of 2":         func(h *header) { h.Index = 2 },
		"device -1 of 2":        func(h *header) { h.Index = -1 },
		"device 0 of 0":         func(h *header) { h.Layout.Devices = nil },
		"0 segments":            func(h *header) { h.Layout.Metadata = nil },
		"a segment on device 2": func(h *header) { h.Layout.Data[0].Device = 2 },
		"bytes at 4096":         func(h *header) { h.Layout.Data[0].Offset = 4096 },
		"of 0 bytes":            func(h *header) { h.Layout.Data[0].Length = 0 },
		"of 18446744073709551104 bytes": func(h *header) {
			h.Layout.Data[0].Length = 1<<64 - 512
		},
		"of 513 bytes": func(h *header) { h.Layout.Data[0].Length = 513 },
		"device 1 has 1152921504606846976 bytes": func(h *header) {
			h.Layout.Devices[1].Size = 1 << 60
		},
	} {
		h := testHeader(t, 0)
		break_(&h)
		_, err := h.encode()
		require.ErrorContains(t, err, what)
	}
	reseal := func(change func(b []byte)) []byte {
		b, err := testHeader(t, 0).encode()
		require.NoError(t, err)
		change(b)
		crc := headerCRC(b)
		copy(b[headerOffsetCRC:], []byte{byte(crc), byte(crc >> 8), byte(crc >> 16), byte(crc >> 24)})
		return b
	}
	_, err = decodeHeader(reseal(func(b []byte) { b[headerOffsetVersion]++ }))
	require.ErrorContains(t, err, "version 2")
	_, err = decodeHeader(reseal(func(b []byte) { b[headerOffsetLength+1] = 0xff }))
	require.ErrorContains(t, err, "a text of")
	_, err = decodeHeader(reseal(func(b []byte) { b[headerOffsetText] = '[' }))
	require.ErrorContains(t, err, "cannot be read")
}

// A header that is accepted has nothing outside its devices.
func FuzzHeader(f *testing.F) {
	b, err := testHeader(f, 1).encode()
	require.NoError(f, err)
	f.Add(b[headerOffsetText:])
	f.Add([]byte(`{"index":0,"pool":{}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		b := make([]byte, headerSize)
		copy(b, headerMagic)
		b[headerOffsetVersion] = headerVersion
		n := min(len(text), headerSize-headerOffsetText)
		b[headerOffsetLength], b[headerOffsetLength+1] = byte(n), byte(n>>8)
		copy(b[headerOffsetText:], text[:n])
		crc := headerCRC(b)
		copy(b[headerOffsetCRC:], []byte{byte(crc), byte(crc >> 8), byte(crc >> 16), byte(crc >> 24)})
		h, err := decodeHeader(b)
		if err != nil {
			return
		}
		for _, s := range append(h.Layout.Metadata, h.Layout.Data...) {
			if s.Offset < headerArea || s.Offset+s.Length > h.Layout.Devices[s.Device].Size {
				t.Errorf("%+v", h)
			}
		}
		_, err = decodeHeader(b[:headerSize-1])
		require.Error(t, err)
	})
}

func TestDescribe(t *testing.T) {
	begin, end := make([]byte, blankBegin), make([]byte, blankEnd)
	require.Empty(t, describe(begin, end, 5*mebibyte))
	end[7] = 0x80
	require.Contains(t, describe(begin, end, 5*mebibyte), "byte 5242887")
	begin[blankBegin-1] = 1
	require.Contains(t, describe(begin, end, 5*mebibyte), "byte 1114111")
	for _, s := range signatures {
		b := make([]byte, blankBegin)
		copy(b[s.offset:], s.bytes)
		require.Equal(t, s.what, describe(b, end, 0))
	}
	require.Equal(t, "the metadata of a thin pool", describe(append(validSuperblock(), make([]byte, 70000)...), end, 0))
}
