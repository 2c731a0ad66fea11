package dmthin

import (
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
)

// FuzzSizeOf holds the size that a label asks for within what a volume can have.
func FuzzSizeOf(f *testing.F) {
	for _, seed := range []string{"", "0", "-1", "10737418240", "9223372036854775807", "9223372036854775808", "1e9", "0x10", "+1", "../1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		size, err := DefaultConfig().sizeOf(map[string]string{snapshots.LabelSnapshotMaxSize: text})
		if err == nil && (size > maxVolumeExt4 || size%sizeUnit != 0) {
			t.Errorf("%q is %d", text, size)
		}
	})
}
