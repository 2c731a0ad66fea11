package metadata

import (
	"math"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"
)

func fullRecord() Snapshot {
	return Snapshot{
		ID: 7, Name: "lamina", Key: "default/3/sha256:abc", Kind: snapshots.KindCommitted,
		ParentID: 6, Parent: "default/2/sha256:def",
		Created: time.Unix(1700000000, 123).UTC(), Updated: time.Unix(1700000001, 0).UTC(),
		Labels:    map[string]string{snapshots.LabelSnapshotRef: "sha256:abc", "b": "c"},
		Placement: Placement{Medium: Volume, Whole: true, Device: MaxDevice, Size: 1 << 40, Project: math.MaxUint32},
		Usage:     &snapshots.Usage{Size: 0, Inodes: 12},
	}
}

func TestRecordRoundTrip(t *testing.T) {
	for _, want := range []Snapshot{fullRecord(), {ID: 7, Created: time.Unix(0, 0).UTC(), Updated: time.Unix(0, 0).UTC()}} {
		b := want.encode()
		got, err := decodeSnapshot(7, b)
		require.NoError(t, err)
		require.Equal(t, want, got)
		link, err := decodeLink(7, b)
		require.NoError(t, err)
		require.Equal(t, Link{ID: 7, Kind: want.Kind, ParentID: want.ParentID, Placement: want.Placement}, link)
	}
}

func TestRecordOfALaterProgram(t *testing.T) {
	b, err := unseal(7, fullRecord().encode())
	require.NoError(t, err)
	b = seal(7, appendUint(b, 99, 1))
	_, err = decodeSnapshot(7, b)
	require.ErrorContains(t, err, "unknown field 99")
	_, err = decodeLink(7, b)
	require.ErrorContains(t, err, "unknown field 99")
}

func FuzzDecodeSnapshot(f *testing.F) {
	full, err := unseal(7, fullRecord().encode())
	require.NoError(f, err)
	f.Add(full)
	f.Add([]byte{})
	f.Add([]byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, b []byte) {
		b = seal(7, b)
		sn, err := decodeSnapshot(7, b)
		link, linkErr := decodeLink(7, b)
		if err != nil {
			return
		}
		// What one accepts the other does, and both say the same.
		require.NoError(t, linkErr)
		require.Equal(t, Link{ID: 7, Kind: sn.Kind, ParentID: sn.ParentID, Placement: sn.Placement}, link)
		again, err := decodeSnapshot(7, sn.encode())
		require.NoError(t, err)
		require.Equal(t, sn, again)
	})
}

// A value belongs to its id, and is what was written.
func TestSealedValue(t *testing.T) {
	b := fullRecord().encode()
	_, err := decodeSnapshot(8, b)
	require.ErrorIs(t, err, errRecord)
	for _, wrong := range [][]byte{nil, b[:3], b[:len(b)-1], append([]byte{0}, b...)} {
		_, err := decodeLink(7, wrong)
		require.ErrorIs(t, err, errRecord)
	}
}
