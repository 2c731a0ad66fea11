package dmthin

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
)

// A copy has the journal that its parent had at the copy, also if that of the parent has been replayed since.
func TestCopyKeepsJournalThatParentLoses(t *testing.T) {
	b := openBackend(t, Config{FS: fsExt4})
	c := b.mustMake(t, 2, b.template, nil)
	dir, unmount := b.mount(t, c, true)
	writeFile(t, filepath.Join(dir, "file"), "synced")
	// As a power cut leaves it, and then a kernel that forgets that there is a journal to be replayed: see ext4_journal.go.
	require.NoError(t, b.control.Suspend(b.pool.volumeName(2), dm.SkipLockFS))
	err := b.control.CreateSnap(b.pool.name, 3, 2)
	require.NoError(t, errors.Join(err, b.control.Resume(b.pool.volumeName(2))))
	unmount()
	require.NoError(t, b.pool.Use(t.Context(), 3, c.Size, false, forgetJournal))
	parent := Content{ID: 3, Size: c.Size}
	child := b.mustMake(t, 4, parent, nil)

	for _, shown := range []struct {
		Content
		writable bool
	}{{parent, false}, {child, true}} {
		dir, unmount := b.mount(t, shown.Content, shown.writable)
		require.Equal(t, "synced", readFile(t, filepath.Join(dir, "file")))
		unmount()
		require.NoError(t, b.Release(t.Context(), shown.ID))
	}
	require.True(t, b.known(parent.ID).clean)
}

// forgetJournal clears needs_recovery.
func forgetJournal(device string) error {
	f, err := openDirect(device, os.O_RDWR)
	if err != nil {
		return err
	}
	head := make([]byte, fsHeadSize)
	_, err = f.ReadAt(head, 0)
	if err == nil {
		features := binary.LittleEndian.Uint32(head[ext4FeatureIncompat:])
		binary.LittleEndian.PutUint32(head[ext4FeatureIncompat:], features&^ext4Recover)
		binary.LittleEndian.PutUint32(head[ext4Checksum:], crc32c(head[ext4Super:ext4Checksum]))
		_, err = f.WriteAt(head, 0)
	}
	return errors.Join(err, f.Close())
}
