package quota

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A wire keeps the last request and answers it.
type wire struct {
	command int
	id      uint32
	sent    []byte
	answer  func(buf []byte)
	err     error
}

func (w *wire) do(_ int, _ string, command int, id uint32, buf []byte) error {
	w.command, w.id, w.sent = command, id, append([]byte{}, buf...)
	if w.answer != nil {
		w.answer(buf)
	}
	return w.err
}

// What a struct fs_disk_quota and a struct fs_quota_statv look like, by include/uapi/linux/dqblk_xfs.h.
func TestWire(t *testing.T) {
	w := &wire{}
	f := FileSystem{do: w.do}
	require.NoError(t, f.SetLimits(3, 0x01020304, Limits{Bytes: 1<<20 + 1, Inodes: 7}))
	want := make([]byte, 112)
	want[0], want[1], want[2] = 1, 2, 0x0f
	copy(want[4:], []byte{4, 3, 2, 1})
	want[8], want[9] = 1, 8 // 2049 basic blocks
	want[24] = 7
	require.Equal(t, want, w.sent)
	require.Equal(t, 0x5804, w.command)

	w.answer = func(buf []byte) {
		buf[8], buf[24], buf[40], buf[48] = 10, 11, 12, 13
	}
	count, err := f.Count(3, 5)
	require.NoError(t, err)
	require.Equal(t, Count{Bytes: 12 * 512, Inodes: 13, Limits: Limits{Bytes: 10 * 512, Inodes: 11}}, count)
	require.EqualValues(t, 5, w.id)
	require.Equal(t, 0x5803, w.command)

	w.err = unix.ENOENT
	count, err = f.Count(3, 5)
	require.NoError(t, err)
	require.Zero(t, count)
	w.err = unix.ESRCH
	_, err = f.Count(3, 5)
	require.ErrorIs(t, err, unix.ESRCH)
	require.ErrorContains(t, err, "project 5")
	require.ErrorIs(t, f.SetLimits(3, 5, Limits{}), unix.ESRCH)

	w.err = nil
	for flags, want := range map[byte]State{
		0x00: {}, 0x0f: {}, 0x10: {Counted: true}, 0x30: {Counted: true, Enforced: true},
	} {
		w.answer = func(buf []byte) { buf[2] = flags }
		state, err := f.State(3)
		require.NoError(t, err)
		require.Equal(t, want, state)
		require.Equal(t, byte(1), w.sent[0])
		require.Len(t, w.sent, 160)
		require.Equal(t, 0x5808, w.command)
	}
}
