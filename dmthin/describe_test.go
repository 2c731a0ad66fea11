package dmthin

import (
	"io/fs"
	"testing"

	"github.com/stretchr/testify/require"
)

// How a content is mounted is told while it has a device, and none is made for that.
func TestDescribeMounts(t *testing.T) {
	b := openSmall(t, Config{})
	c := b.mustMake(t, 2, b.template, nil)
	chain := []Content{c, b.template}
	want, err := b.Mounts(t.Context(), chain, true, nil)
	require.NoError(t, err)
	got, err := b.Describe(t.Context(), chain, true, nil)
	require.NoError(t, err)
	require.Equal(t, want, got)

	require.NoError(t, b.Release(t.Context(), 2))
	got, err = b.Describe(t.Context(), chain, true, nil)
	require.NoError(t, err)
	require.Empty(t, got)
	_, err = b.pool.volume(2)
	require.ErrorIs(t, err, fs.ErrNotExist, "no device has appeared")
}
