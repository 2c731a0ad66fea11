package dmthin

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// used returns how many bytes of disk the data of the pool take.
func (p *testPool) used(t *testing.T) int64 {
	t.Helper()
	var st unix.Stat_t
	unix.Sync()
	require.NoError(t, unix.Stat(filepath.Join(p.dir, "data"), &st))
	return st.Blocks * sector
}

// fill writes n bytes at an offset of a volume that is size bytes long.
func (p *testPool) fill(t *testing.T, id uint32, size uint64, b byte, offset, n int64) {
	t.Helper()
	path, err := p.Activate(t.Context(), id, size, false)
	require.NoError(t, err)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt(bytes.Repeat([]byte{b}, int(n)), offset)
	require.NoError(t, errors.Join(err, f.Sync(), f.Close()))
}

func (p *testPool) sum(t *testing.T, id uint32) string {
	t.Helper()
	path, err := p.Activate(t.Context(), id, testVolume, true)
	require.NoError(t, err)
	f, err := os.Open(path)
	require.NoError(t, err)
	hash := sha256.New()
	_, err = io.Copy(hash, f)
	require.NoError(t, errors.Join(err, f.Close()))
	return fmt.Sprintf("%x", hash.Sum(nil))
}

// shrinksTo waits until the data take some n bytes.
func (p *testPool) shrinksTo(t *testing.T, n int64) {
	t.Helper()
	const slack = 4 << 20
	require.Eventually(t, func() bool { return p.used(t) < n+slack }, 10*time.Second, 10*time.Millisecond)
	require.Greater(t, p.used(t), n-slack)
}

// Space that a deleted volume had to itself goes back to the file system below, whatever is known of the volume.
func TestDeleteShrinksTheFile(t *testing.T) {
	const odd = testVolume + testBlock/2 // the last block is not a whole one
	for name, c := range map[string]struct {
		size   uint64 // what Delete is told
		before func(p *testPool) error
	}{
		"of known size":           {size: odd},
		"of unknown size":         {},
		"inactive":                {size: odd, before: func(p *testPool) error { _, err := p.Deactivate(context.Background(), 1); return err }},
		"inactive, unknown":       {before: func(p *testPool) error { _, err := p.Deactivate(context.Background(), 1); return err }},
		"of a size that is wrong": {size: sector, before: func(p *testPool) error { _, err := p.Deactivate(context.Background(), 1); return err }},
		"read-only":               {before: func(p *testPool) error { _, err := p.Activate(context.Background(), 1, odd, true); return err }},
		"suspended":               {before: func(p *testPool) error { return p.control.Suspend(p.volumeName(1), 0) }},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPool(t)
			require.NoError(t, p.Create(t.Context(), 1))
			p.fill(t, 1, odd, 1, 0, 32<<20)
			p.fill(t, 1, odd, 1, odd-16<<20, 16<<20)
			require.Greater(t, p.used(t), int64(47<<20))
			if c.before != nil {
				require.NoError(t, c.before(p))
			}
			require.NoError(t, p.Delete(t.Context(), 1, c.size, true))
			p.shrinksTo(t, 0)
			active, err := p.Active()
			require.NoError(t, err)
			require.Empty(t, active)
		})
	}
}

// Of a volume that shares blocks only its own go; what the others have stays.
func TestDeleteKeepsWhatIsShared(t *testing.T) {
	const base, own = 32 << 20, 16 << 20
	p := newPool(t)
	ctx := t.Context()
	require.NoError(t, p.Create(ctx, 1))
	p.fill(t, 1, testVolume, 1, 0, base)
	want := p.sum(t, 1)
	require.NoError(t, p.Snapshot(ctx, 2, 1))
	p.fill(t, 2, testVolume, 2, 0, own/2)      // instead of shared ones
	p.fill(t, 2, testVolume, 2, 2*base, own/2) // beyond them
	require.NoError(t, p.Snapshot(ctx, 3, 1))
	p.fill(t, 3, testVolume, 3, base-own, own)
	wantOther := p.sum(t, 3)
	require.Greater(t, p.used(t), int64(base+2*own-1<<20))

	require.NoError(t, p.Delete(ctx, 2, 0, true))
	p.shrinksTo(t, base+own)
	require.Equal(t, want, p.sum(t, 1))
	require.Equal(t, wantOther, p.sum(t, 3))

	require.NoError(t, p.Delete(ctx, 1, 0, true))
	p.shrinksTo(t, base) // of the origin's blocks those that the copy has written anew
	require.Equal(t, wantOther, p.sum(t, 3))
	require.NoError(t, p.Delete(ctx, 3, 0, true))
	p.shrinksTo(t, 0)
}

// A volume that nothing was written to, or that is not there, has nothing to discard.
func TestDeleteWithoutBlocks(t *testing.T) {
	p := newPool(t)
	ctx := t.Context()
	require.NoError(t, p.Delete(ctx, 1, 0, true))
	require.NoError(t, p.Create(ctx, 1))
	require.NoError(t, p.Delete(ctx, 1, 0, true))
	require.Empty(t, p.mustVolumes(t))
}

// A volume whose blocks cannot be discarded is deleted all the same, unless it is in use.
func TestDeleteWithoutDiscard(t *testing.T) {
	p := newPool(t)
	ctx := t.Context()
	require.NoError(t, p.Create(ctx, 1))
	p.fill(t, 1, testVolume, 1, 0, mebibyte)
	user := p.pending(t, false)
	p.dev = p.data.dev // no pool: the volume gets no device
	require.ErrorIs(t, p.Delete(ctx, 1, testVolume, true), unix.EBUSY)
	require.NoError(t, user.Close())
	_, err := p.Deactivate(ctx, 1)
	require.NoError(t, err)
	require.Error(t, p.discard(ctx, 1, testVolume))
	require.NoError(t, p.Delete(ctx, 1, testVolume, true))
	require.Empty(t, p.mustVolumes(t))
}

// A discard that is given up leaves the volume, and is done by the next delete.
func TestDiscardObeysContext(t *testing.T) {
	p := newPool(t)
	ctx := t.Context()
	require.NoError(t, p.Create(ctx, 1))
	p.fill(t, 1, testVolume, 1, 0, 32<<20)
	ended, cancel := context.WithCancel(ctx)
	cancel()
	require.ErrorIs(t, p.discard(ended, 1, testVolume), context.Canceled)
	require.ErrorIs(t, p.Delete(ended, 1, testVolume, true), context.Canceled)
	require.Len(t, p.mustVolumes(t), 1)
	require.NoError(t, p.Delete(ctx, 1, 0, true))
	p.shrinksTo(t, 0)
}
