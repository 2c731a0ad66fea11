package lamina

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/metadata"
)

// A start waits for who reads the root, as long as its context says, and not for another daemon.
func TestOpenWaitsForReaders(t *testing.T) {
	c := tConfig(t)
	needRoot(t)
	h, err := Open(t.Context(), c)
	require.NoError(t, err)
	begun := time.Now()
	_, err = Open(t.Context(), c)
	require.ErrorIs(t, err, metadata.ErrLocked)
	require.Less(t, time.Since(begun), readersWait/2)
	require.NoError(t, h.Close())

	reader, err := OpenStopped(c)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 5*readersPause)
	defer cancel()
	_, err = Open(ctx, c)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, err, metadata.ErrLocked, "it was given up")
	const wait = 5 * readersPause
	begun = time.Now()
	_, err = openStore(t.Context(), c.storePath(), wait)
	require.GreaterOrEqual(t, time.Since(begun), wait)
	require.Less(t, time.Since(begun), readersWait/2)
	require.ErrorIs(t, err, metadata.ErrLocked)
	require.EqualError(t, err, "open store "+c.storePath()+": another process has the store open, still after 100ms")
	closed := make(chan error, 1)
	time.AfterFunc(5*readersPause, func() { closed <- reader.Close() })
	h, err = Open(t.Context(), c)
	require.NoError(t, err)
	require.NoError(t, <-closed)
	require.NoError(t, h.Close())
}
