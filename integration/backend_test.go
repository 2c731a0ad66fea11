package integration

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/overlayaufs"
	"github.com/lamina-snapshotter/lamina/snapshotter"
	"github.com/lamina-snapshotter/lamina/snapshotter/backendtest"
)

// TestUnionBackend holds the union backend to the text of snapshotter.Backend.
// The backend's own package may not import that one.
func TestUnionBackend(t *testing.T) {
	requireRoot(t)
	backendtest.Run(t, func(t *testing.T, root string) snapshotter.Backend {
		t.Helper()
		b, err := overlayaufs.Open(t.Context(), overlayaufs.Config{Root: filepath.Join(root, "union")})
		require.NoError(t, err)
		return b
	})
}
