package kubernetes

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"
)

// A registry is the one of the distribution project, in this process.
type registry struct {
	t       *testing.T
	address string
}

func startRegistry(t *testing.T) registry {
	t.Helper()
	logrus.SetOutput(io.Discard) // it writes a line for each request
	c := &configuration.Configuration{Storage: configuration.Storage{"filesystem": {"rootdirectory": t.TempDir()}}}
	server := httptest.NewServer(handlers.NewApp(t.Context(), c))
	t.Cleanup(server.Close)
	return registry{t, strings.TrimPrefix(server.URL, "http://")}
}

// name returns the name of an image in the registry.
func (r registry) name(repository string) string { return r.address + "/" + repository + ":test" }

// pushArchive pushes the image of an OCI archive.
func (r registry) pushArchive(repository, archive string) {
	r.t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		r.t.Fatalf("%v: run integration/setup", err)
	}
	defer f.Close()
	var index ocispec.Index
	blobs := map[digest.Digest][]byte{}
	for tr := tar.NewReader(f); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(r.t, err)
		content, err := io.ReadAll(tr)
		require.NoError(r.t, err)
		if h.Name == ocispec.ImageIndexFile {
			require.NoError(r.t, json.Unmarshal(content, &index))
		} else {
			blobs[digest.FromBytes(content)] = content
		}
	}
	manifest := blobs[index.Manifests[0].Digest]
	delete(blobs, index.Manifests[0].Digest)
	r.push(repository, "test", manifest, blobs)
}

// pushPause pushes an image of one layer whose container does nothing: what a sandbox runs.
func (r registry) pushPause(repository, busybox string) {
	r.t.Helper()
	layer := r.layer(map[string]string{"/busybox": busybox})
	r.pushLayers(repository, "test", []string{"/busybox", "sleep", "1000000"}, [][]byte{layer})
}

func (r registry) push(repository, tag string, manifest []byte, blobs map[digest.Digest][]byte) {
	r.t.Helper()
	base := "http://" + r.address + "/v2/" + repository
	for d, content := range blobs {
		upload := r.send(http.MethodPost, base+"/blobs/uploads/", "", nil)
		r.send(http.MethodPut, fmt.Sprintf("%s&digest=%s", upload.Get("Location"), d), "application/octet-stream", content)
	}
	r.send(http.MethodPut, base+"/manifests/"+tag, ocispec.MediaTypeImageManifest, manifest)
}

func (r registry) send(method, url, contentType string, body []byte) http.Header {
	r.t.Helper()
	request, err := http.NewRequestWithContext(r.t.Context(), method, url, bytes.NewReader(body))
	require.NoError(r.t, err)
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	response, err := http.DefaultClient.Do(request)
	require.NoError(r.t, err)
	answer, err := io.ReadAll(response.Body)
	require.NoError(r.t, errors.Join(err, response.Body.Close()))
	require.Less(r.t, response.StatusCode, 300, "%s %s: %s", method, url, answer)
	return response.Header
}
