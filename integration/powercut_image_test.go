package integration

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

// imageLayers are the layers of an image, as a containerd has them in its content
// store.
type imageLayers struct {
	store  content.Store
	layers []ocispec.Descriptor
}

// mustLayers reads an image from .cache/images.
func mustLayers(t *testing.T, name string) *imageLayers {
	t.Helper()
	store, err := local.NewStore(mustTempDir(t))
	require.NoError(t, err)
	f, err := os.Open(mustHave(t, ".cache/images", name))
	require.NoError(t, err)
	defer f.Close()
	var index ocispec.Index
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		switch {
		case h.Name == ocispec.ImageIndexFile:
			require.NoError(t, json.NewDecoder(r).Decode(&index))
		case strings.HasPrefix(h.Name, "blobs/sha256/"):
			d := ocispec.Descriptor{Digest: digest.NewDigestFromEncoded(digest.SHA256, path.Base(h.Name)), Size: h.Size}
			require.NoError(t, content.WriteBlob(t.Context(), store, h.Name, r, d))
		}
	}
	require.Len(t, index.Manifests, 1)
	manifest, err := images.Manifest(t.Context(), store, index.Manifests[0], platforms.All)
	require.NoError(t, err)
	return &imageLayers{store: store, layers: manifest.Layers}
}

// unpack applies layer i as containerd does: into the upper directory of an
// overlay, whose unmounting would sync what it holds, or into what it mounts.
func (l *imageLayers) unpack(t *testing.T, i int, mounts []mount.Mount) {
	t.Helper()
	_, err := apply.NewFileSystemApplier(l.store).Apply(t.Context(), l.layers[i], mounts)
	require.NoError(t, err)
}
