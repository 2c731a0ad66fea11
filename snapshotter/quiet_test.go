package snapshotter

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/metadata"
)

// A wait ends with those who were inside when it began, and not with those who came later.
func TestInFlight(t *testing.T) {
	var f inFlight
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, f.wait(ended), "nobody is inside")
	first, second := f.enter(), f.enter()
	require.ErrorIs(t, f.wait(ended), context.Canceled)
	first()
	third := f.enter() // after the first wait, so of another period
	require.ErrorIs(t, f.wait(ended), context.Canceled, "the second is inside")

	waited := make(chan error, 1)
	go func() { waited <- f.wait(t.Context()) }()
	second()
	third()
	require.NoError(t, <-waited)

	later := f.enter()
	waitFor := append([]*period(nil), f.open...)
	require.Len(t, waitFor, 1)
	require.ErrorIs(t, f.wait(ended), context.Canceled)
	latest := f.enter()
	later()
	<-waitFor[0].ended // though the latest is inside
	require.ErrorIs(t, f.wait(ended), context.Canceled)
	latest()
	require.NoError(t, f.wait(ended))
	require.Empty(t, f.open)
}

// A making of one medium is not waited for by who asks for another.
func TestMakingsByMedium(t *testing.T) {
	var m makings
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	leave := m.of(metadata.Volume).enter()
	require.NoError(t, m.of(metadata.Directory).wait(ended))
	require.ErrorIs(t, m.of(metadata.Volume).wait(ended), context.Canceled)
	leave()
	require.NoError(t, m.of(metadata.Volume).wait(ended))
}
