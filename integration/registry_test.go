package integration

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

// startRegistry serves the image of an OCI archive, and returns the name under
// which it can be pulled. containerd unpacks side by side only what it pulls.
func startRegistry(t *testing.T, archive []byte) (name string) {
	t.Helper()
	files := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		files[h.Name], err = io.ReadAll(r)
		require.NoError(t, err)
	}
	var index ocispec.Index
	require.NoError(t, json.Unmarshal(files[ocispec.ImageIndexFile], &index))
	manifest := index.Manifests[0]
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		digest := path.Base(r.URL.Path)
		if digest == "test" {
			digest = manifest.Digest.String()
		}
		blob, found := files["blobs/"+strings.Replace(digest, ":", "/", 1)]
		switch {
		case r.URL.Path == "/v2/":
		case !found:
			http.NotFound(w, r)
		default:
			if digest == manifest.Digest.String() {
				w.Header().Set("Content-Type", manifest.MediaType)
			}
			w.Header().Set("Docker-Content-Digest", digest)
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob))
		}
	}))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://") + "/lamina/image:test"
}
