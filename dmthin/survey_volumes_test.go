package dmthin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// badDisk has one block that cannot be read.
type badDisk struct{ at int64 }

func (d badDisk) ReadAt(b []byte, off int64) (int, error) {
	if off == d.at {
		return 0, unix.EIO
	}
	clear(b)
	return len(b), nil
}

var _ io.ReaderAt = badDisk{}

// A sector that cannot be read concerns the volume that it is of, and no other.
func TestSurveyOfBadDisk(t *testing.T) {
	m := blocks{}
	m.putNode(10, leafNode, []uint64{1, 2}, []uint64{1, 1})
	m.putMapping(20, leafNode, []uint64{1, 2}, []uint64{21, 22})
	m.putMapping(21, leafNode, []uint64{0}, []uint64{block(5)})
	m.putMapping(22, leafNode, []uint64{0}, []uint64{block(6)})
	sb := superblock{details: 10, mapping: 20, data: space{total: 200}}
	sb.BlockSize = testBlock
	volumes, err := surveyVolumes(t.Context(), m, badDisk{5 * testBlock}, sb)
	require.NoError(t, err)
	require.Len(t, volumes, 2)
	require.ErrorIs(t, volumes[0].FSProblem, unix.EIO)
	require.True(t, volumes[0].Unreadable)
	require.Error(t, volumes[1].FSProblem, "there is none on it")
	require.False(t, volumes[1].Unreadable)
}

// What keeps the metadata from being read for a while is no damage.
func TestUnreadOrDamaged(t *testing.T) {
	for err, damage := range map[error]bool{
		errors.New("a checksum"): true, unix.EIO: true,
		errPoolState: false, errChanging: false, context.DeadlineExceeded: false, errdefs.ErrUnavailable: false,
	} {
		s := Survey{Unread: fmt.Errorf("read: %w", err)}
		s.tellUnread()
		require.Equal(t, damage, s.Unread != nil, err)
		require.Equal(t, damage, s.NotRead == nil, err)
	}
}
