package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"path"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// serveImage serves the image of an OCI archive on the loopback, and returns the name under which it can be pulled:
// containerd unpacks side by side only what it pulls.
func serveImage(ctx context.Context, archive []byte) (name string, closeServer func() error, err error) {
	files := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", nil, err
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			return "", nil, err
		}
	}
	var index ocispec.Index
	if err := json.Unmarshal(files[ocispec.ImageIndexFile], &index); err != nil {
		return "", nil, err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	server := &http.Server{Handler: blobs{files, index.Manifests[0]}, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(l) }()
	return l.Addr().String() + "/lamina/image:test", server.Close, nil
}

// blobs are those of one image, by their paths in an OCI archive.
type blobs struct {
	files    map[string][]byte
	manifest ocispec.Descriptor
}

func (b blobs) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	digest := path.Base(r.URL.Path)
	if digest == "test" {
		digest = b.manifest.Digest.String()
	}
	blob, found := b.files["blobs/"+strings.Replace(digest, ":", "/", 1)]
	switch {
	case r.URL.Path == "/v2/":
	case !found:
		http.NotFound(w, r)
	default:
		if digest == b.manifest.Digest.String() {
			w.Header().Set("Content-Type", b.manifest.MediaType)
		}
		w.Header().Set("Docker-Content-Digest", digest)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob))
	}
}
