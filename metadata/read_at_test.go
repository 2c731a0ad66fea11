package metadata

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A faultyDisk has one page that cannot be read.
type faultyDisk struct {
	io.ReaderAt
	page int64
	err  error
}

func (d faultyDisk) ReadAt(b []byte, at int64) (int, error) {
	page := int64(os.Getpagesize())
	if at < (d.page+1)*page && at+int64(len(b)) > d.page*page {
		return 0, d.err
	}
	return d.ReaderAt.ReadAt(b, at)
}

// cutStore returns a store whose last commit, which is all there, nobody knows to be durable.
func cutStore(t *testing.T, path string) []byte {
	t.Helper()
	s := mustOpen(t, path)
	tCreate(t, s, "before")
	s.batch.sync = func() error { return errSpoilt }
	_, err := s.Remove(t.Context(), "n", "before")
	require.ErrorIs(t, err, ErrFailed)
	require.NoError(t, s.Close())
	return fileOf(t, path)
}

// A page of the last commit or of the one before that cannot be read now is none that is missing, whatever kept it from being
// read: nothing is undone for it, and nothing is called damaged.
func TestReadErrorIsNoDamage(t *testing.T) {
	whole := cutStore(t, filepath.Join(t.TempDir(), "lamina.db"))
	newest, _, err := readMetas(bytes.NewReader(whole))
	require.NoError(t, err)
	cut := bytes.Clone(whole)
	clear(cut[newest.root()*newest.pageSize:][:sectorSize])
	for name, file := range map[string][]byte{"whole": whole, "cut off": cut} {
		judged, err := judge(bytes.NewReader(file), uint64(len(file)))
		require.NoError(t, err)
		require.Equal(t, name == "cut off", judged.cutOff != nil)
		unread := 0
		for page := range int64(len(file) / os.Getpagesize()) {
			for _, errno := range []error{unix.EIO, unix.ETIMEDOUT, unix.ENOMEM} {
				got, err := judge(faultyDisk{bytes.NewReader(file), page, errno}, uint64(len(file)))
				if err == nil {
					require.Equal(t, judged.page.txid(), got.page.txid(), "%s: page %d is in use", name, page)
					continue
				}
				unread++
				require.ErrorIs(t, err, errno)
				require.ErrorIs(t, err, errUnread)
				require.NotErrorIs(t, classify(bytes.NewReader(file), err), ErrDamaged)
			}
		}
		require.GreaterOrEqual(t, unread, 3*3, name) // both meta pages, and the root
	}
	for page := range int64(2) {
		_, err := judge(faultyDisk{bytes.NewReader(cut), page, io.EOF}, uint64(len(cut)))
		require.NotErrorIs(t, err, errUnread)
		require.Error(t, err)
	}
}
