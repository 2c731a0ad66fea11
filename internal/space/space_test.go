package space

import (
	"errors"
	"io/fs"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// An error says what it means where that is known, and stays what it is.
func TestExplain(t *testing.T) {
	for errno, says := range map[unix.Errno]string{
		unix.ENOSPC: " free of ", unix.EDQUOT: "quota", unix.EROFS: "read-only", unix.EIO: "the kernel's log",
	} {
		err := Explain(&os.PathError{Op: "write", Path: "x", Err: errno}, t.TempDir())
		require.ErrorIs(t, err, errno)
		if errno == unix.ENOSPC {
			require.Regexp(t, `has [0-9.]+\w+ of [0-9.]+\w+ free`, err)
			continue
		}
		require.ErrorContains(t, err, says)
	}
	require.NoError(t, Explain(nil, "/"))
	other := errors.New("other")
	require.Equal(t, other, Explain(other, "/"))
	require.ErrorIs(t, Explain(fs.ErrNotExist, "/"), fs.ErrNotExist)
	require.Contains(t, Usage("/does/not/exist"), "cannot be told")
}
