package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// testSources makes a root directory and a package that are as small as the
// layers above them allow.
func testSources(t *testing.T) Sources {
	t.Helper()
	write := func(name string, content func(*tarWriter) error) string {
		t.Helper()
		name = filepath.Join(t.TempDir(), name)
		f, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		tw := newTarWriter(f)
		if err := errors.Join(content(tw), tw.Close(), f.Close()); err != nil {
			t.Fatal(err)
		}
		return name
	}
	return Sources{
		Rootfs: write("rootfs.tar", func(w *tarWriter) error {
			return all(w.dir("."), w.dir("./usr"), w.dir("./usr/bin"), w.symlink("./bin", "usr/bin"),
				w.text("./usr/bin/sh", "sh", mode(0o755)), w.link("./usr/bin/dash", "./usr/bin/sh"))
		}),
		Packages: []string{write("package.tar", func(w *tarWriter) error {
			return all(w.dir("."), w.dir("./bin"), w.text("./bin/tool", "tool", mode(0o755)))
		})},
	}
}

func testImage(t *testing.T, src Sources) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := debian(&b, src, 1<<20); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestSameSourcesSameBytes(t *testing.T) {
	src := testSources(t)
	if !bytes.Equal(testImage(t, src), testImage(t, src)) {
		t.Fatal("two images of the same sources differ")
	}
}

func TestLayersMatchConfig(t *testing.T) {
	manifest, config, layers := readImage(t, testImage(t, testSources(t)))
	if len(layers) < 8 {
		t.Fatalf("%d layers, want at least eight", len(layers))
	}
	kinds := map[string]int{}
	for i, l := range manifest.Layers {
		kinds[l.MediaType]++
		if got, want := digest.FromBytes(layers[i]), config.RootFS.DiffIDs[i]; got != want {
			t.Errorf("layer %d: content has digest %s, the config says %s", i, got, want)
		}
	}
	for _, kind := range []string{ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd} {
		if kinds[kind] == 0 {
			t.Errorf("no layer of type %s", kind)
		}
	}
}

// TestLayersHold looks for one entry of each kind that the package promises.
func TestLayersHold(t *testing.T) {
	_, _, layers := readImage(t, testImage(t, testSources(t)))
	var entries []tar.Header
	for _, l := range layers {
		entries = append(entries, readTar(t, l)...)
	}
	has := func(what string, match func(tar.Header) bool) {
		t.Helper()
		if !slices.ContainsFunc(entries, match) {
			t.Errorf("no entry is %s", what)
		}
	}
	named := func(name string) func(tar.Header) bool {
		return func(h tar.Header) bool { return h.Name == name }
	}
	has("a whiteout", named("lamina/gone/.wh.file"))
	has("an opaque directory", named("lamina/replaced/.wh..wh..opq"))
	has("a package's file in the merged /usr", named("usr/bin/tool"))
	has("a hard link", func(h tar.Header) bool { return h.Typeflag == tar.TypeLink })
	has("a symlink", func(h tar.Header) bool { return h.Typeflag == tar.TypeSymlink })
	has("a character device", func(h tar.Header) bool { return h.Typeflag == tar.TypeChar })
	has("a block device", func(h tar.Header) bool { return h.Typeflag == tar.TypeBlock })
	has("a fifo", func(h tar.Header) bool { return h.Typeflag == tar.TypeFifo })
	has("setuid", func(h tar.Header) bool { return h.Typeflag == tar.TypeReg && h.Mode&0o4000 != 0 })
	has("a setgid directory", func(h tar.Header) bool { return h.Typeflag == tar.TypeDir && h.Mode&0o2000 != 0 })
	has("a sticky directory", func(h tar.Header) bool { return h.Typeflag == tar.TypeDir && h.Mode&0o1000 != 0 })
	has("of a far owner", func(h tar.Header) bool { return h.Uid > 65535 && h.Gid > 65535 })
	has("a path beyond 1024 bytes", func(h tar.Header) bool { return len(h.Name) > 1024 })
	has("a file with a capability", func(h tar.Header) bool {
		return h.PAXRecords["SCHILY.xattr.security.capability"] == capNetRaw
	})
}

func TestBigFileIsAsPromised(t *testing.T) {
	if testing.Short() {
		t.Skip("digests 200 MB")
	}
	sum := sha256.New()
	r, w := io.Pipe()
	go func() {
		tw := newTarWriter(w)
		w.CloseWithError(errors.Join(tw.noise(Big, BigSize), tw.Close()))
	}()
	tr := tar.NewReader(r)
	if _, err := tr.Next(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(sum, tr); err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != BigSHA256 {
		t.Fatalf("the large file has SHA-256 %s, not %s", got, BigSHA256)
	}
}

func TestSmall(t *testing.T) {
	var b bytes.Buffer
	if err := Small(&b, []byte("busybox")); err != nil {
		t.Fatal(err)
	}
	manifest, config, _ := readImage(t, b.Bytes())
	if got, want := len(config.RootFS.DiffIDs), len(manifest.Layers); got != want {
		t.Fatalf("the config has %d layers, the manifest %d", got, want)
	}
}

// readImage reads an OCI archive and returns its layers uncompressed.
func readImage(t *testing.T, archive []byte) (m ocispec.Manifest, c ocispec.Image, layers [][]byte) {
	t.Helper()
	files := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
	blob := func(d ocispec.Descriptor) []byte {
		t.Helper()
		b := files["blobs/sha256/"+d.Digest.Encoded()]
		if digest.FromBytes(b) != d.Digest || int64(len(b)) != d.Size {
			t.Fatalf("blob %s is missing or is not what its name says", d.Digest)
		}
		return b
	}
	var index ocispec.Index
	mustDecode(t, files[ocispec.ImageIndexFile], &index)
	mustDecode(t, blob(index.Manifests[0]), &m)
	mustDecode(t, blob(m.Config), &c)
	for _, l := range m.Layers {
		layers = append(layers, mustUncompress(t, blob(l), l.MediaType))
	}
	return m, c, layers
}

func mustDecode(t *testing.T, b []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatal(err)
	}
}

func mustUncompress(t *testing.T, b []byte, mediaType string) []byte {
	t.Helper()
	var r io.Reader = bytes.NewReader(b)
	var err error
	switch {
	case strings.HasSuffix(mediaType, "+gzip"):
		r, err = gzip.NewReader(r)
	case strings.HasSuffix(mediaType, "+zstd"):
		r, err = zstd.NewReader(r)
	}
	if err != nil {
		t.Fatal(err)
	}
	if b, err = io.ReadAll(r); err != nil {
		t.Fatal(err)
	}
	return b
}

func readTar(t *testing.T, b []byte) (entries []tar.Header) {
	t.Helper()
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return entries
		}
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, *h)
	}
}
