package image

import (
	"bufio"
	"bytes"
	"compress/gzip"
	_ "crypto/sha256" // go-digest finds it by its name
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// annotationName is where containerd's importer looks for the full name of an
// image; the OCI annotation holds a tag only.
const annotationName = "io.containerd.image.name"

// created is the time of every file and of the image itself.
var created = time.Date(2024, time.February, 29, 12, 30, 15, 0, time.UTC)

// layer is one layer of an image, before it is written.
type layer struct {
	about     string // what the history says of it
	mediaType string // decides the compression
	write     func(*tarWriter) error
}

// archive collects the blobs of one image in a directory.
type archive struct {
	dir     string
	blobs   []ocispec.Descriptor
	layers  []ocispec.Descriptor
	diffIDs []digest.Digest
	history []ocispec.History
}

// writeArchive writes an image of the layers to w as an OCI archive.
func writeArchive(w io.Writer, name string, config ocispec.ImageConfig, layers []layer) (err error) {
	// Layers go through files: an entry of the outer tar states its size first.
	dir, err := os.MkdirTemp("", "lamina-image-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	a := &archive{dir: dir}
	for _, l := range layers {
		if err := a.addLayer(l); err != nil {
			return fmt.Errorf("layer %q: %w", l.about, err)
		}
	}
	index, err := a.addIndex(name, config)
	if err != nil {
		return err
	}
	return a.writeTo(w, index)
}

func (a *archive) addLayer(l layer) (err error) {
	f, err := os.CreateTemp(a.dir, "layer-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()

	blob := &counter{w: bufio.NewWriterSize(f, 1<<20), digester: digest.Canonical.Digester()}
	compressed, err := compressor(blob, l.mediaType)
	if err != nil {
		return err
	}
	diffID := digest.Canonical.Digester()
	tw := newTarWriter(io.MultiWriter(compressed, diffID.Hash()))
	if err := l.write(tw); err != nil {
		return err
	}
	for _, finish := range []func() error{tw.Close, compressed.Close, blob.w.Flush} {
		if err := finish(); err != nil {
			return err
		}
	}
	d := ocispec.Descriptor{MediaType: l.mediaType, Digest: blob.digester.Digest(), Size: blob.n}
	if err := os.Rename(f.Name(), a.path(d.Digest)); err != nil {
		return err
	}
	a.blobs = append(a.blobs, d)
	a.layers = append(a.layers, d)
	a.diffIDs = append(a.diffIDs, diffID.Digest())
	a.history = append(a.history, ocispec.History{Created: &created, CreatedBy: "lamina: " + l.about})
	return nil
}

// addIndex adds the config and the manifest, and returns the index.
func (a *archive) addIndex(name string, config ocispec.ImageConfig) ([]byte, error) {
	configDesc, err := a.addJSON(ocispec.MediaTypeImageConfig, ocispec.Image{
		Created:  &created,
		Platform: ocispec.Platform{Architecture: "amd64", OS: "linux"},
		Config:   config,
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: a.diffIDs},
		History:  a.history,
	})
	if err != nil {
		return nil, err
	}
	manifest, err := a.addJSON(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    configDesc,
		Layers:    a.layers,
	})
	if err != nil {
		return nil, err
	}
	manifest.Annotations = map[string]string{annotationName: name}
	return json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{manifest},
	})
}

func (a *archive) addJSON(mediaType string, v any) (ocispec.Descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	a.blobs = append(a.blobs, d)
	return d, os.WriteFile(a.path(d.Digest), b, 0o600)
}

func (a *archive) path(d digest.Digest) string {
	return filepath.Join(a.dir, d.Encoded())
}

func (a *archive) writeTo(w io.Writer, index []byte) error {
	layout, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return err
	}
	tw := newTarWriter(w)
	if err := tw.file(ocispec.ImageLayoutFile, bytes.NewReader(layout), int64(len(layout))); err != nil {
		return err
	}
	if err := tw.file(ocispec.ImageIndexFile, bytes.NewReader(index), int64(len(index))); err != nil {
		return err
	}
	for _, d := range a.blobs {
		if err := a.writeBlob(tw, d); err != nil {
			return err
		}
	}
	return tw.Close()
}

func (a *archive) writeBlob(tw *tarWriter, d ocispec.Descriptor) (err error) {
	f, err := os.Open(a.path(d.Digest))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return tw.file("blobs/sha256/"+d.Digest.Encoded(), f, d.Size)
}

// compressor returns a writer that compresses for the media type of a layer.
func compressor(w io.Writer, mediaType string) (io.WriteCloser, error) {
	switch mediaType {
	case ocispec.MediaTypeImageLayer:
		return plain{w}, nil
	case ocispec.MediaTypeImageLayerGzip:
		return gzip.NewWriterLevel(w, gzip.BestSpeed)
	case ocispec.MediaTypeImageLayerZstd:
		// One at a time: concurrent encoders may cut frames differently.
		return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
	default:
		return nil, fmt.Errorf("no compression for %s", mediaType)
	}
}

type plain struct{ io.Writer }

func (plain) Close() error { return nil }

// counter counts and digests what passes through it.
type counter struct {
	w        *bufio.Writer
	digester digest.Digester
	n        int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	c.digester.Hash().Write(p[:n])
	return n, err
}
