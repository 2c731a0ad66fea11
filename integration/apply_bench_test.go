package integration

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/klauspost/compress/gzip"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// BenchmarkApply unpacks a layer of the Debian image as containerd does, and each part of that alone, in turn. The parts tell
// what an applier of Lamina's could gain: one that does them side by side is never faster than the longest of them
// ("times-bound"); one that inflates and hashes beside containerd's writer is as fast as "beside" says ("times").
// What it prints are medians, in milliseconds. On a busy machine they say little: "beside" has two threads, which get twice the
// share of one.
func BenchmarkApply(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("whiteouts of overlayfs need root")
	}
	layer := gzippedLayer(b)
	parts := []string{"containerd", "beside", "inflate", "hash", "write"}
	run := map[string]func(*applyRun, context.Context) error{
		"containerd": (*applyRun).containerd, "beside": (*applyRun).beside,
		"inflate": (*applyRun).inflate, "hash": (*applyRun).hash, "write": (*applyRun).write,
	}
	r := &applyRun{layer: layer, tar: inflated(b, layer)}
	times := map[string][]time.Duration{}
	for b.Loop() {
		for _, part := range parts {
			r.upper = b.TempDir()
			start := time.Now()
			require.NoError(b, run[part](r, b.Context()), part)
			times[part] = append(times[part], time.Since(start))
			b.StopTimer()
			require.NoError(b, os.RemoveAll(r.upper))
			unix.Sync() // or the next part waits for the disk
			b.StartTimer()
		}
		slices.Reverse(parts)
	}
	median := func(part string) float64 {
		slices.Sort(times[part])
		return times[part][len(times[part])/2].Seconds() * 1000
	}
	for _, part := range parts {
		b.ReportMetric(median(part), part+"-ms")
	}
	b.ReportMetric(median("containerd")/max(median("inflate"), median("hash"), median("write")), "times-bound")
	b.ReportMetric(median("containerd")/median("beside"), "times")
}

// gzippedLayer returns the largest layer of the Debian image that gzip has written.
func gzippedLayer(b *testing.B) (layer []byte) {
	b.Helper()
	f, err := os.Open(filepath.Join("..", ".cache", "images", "debian.tar"))
	require.NoError(b, err, "run integration/setup")
	defer f.Close()
	for tr := tar.NewReader(f); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(b, err)
		var magic [2]byte
		if _, err := io.ReadFull(tr, magic[:]); err != nil || magic != [2]byte{0x1f, 0x8b} || h.Size <= int64(len(layer)) {
			continue
		}
		rest, err := io.ReadAll(tr)
		require.NoError(b, err)
		layer = append(magic[:], rest...)
	}
	require.NotEmpty(b, layer)
	return layer
}

func inflated(b *testing.B, layer []byte) []byte {
	b.Helper()
	z, err := gzip.NewReader(bytes.NewReader(layer))
	require.NoError(b, err)
	whole, err := io.ReadAll(z)
	require.NoError(b, err)
	return whole
}

// An applyRun has a layer, the tar in it, and the upper directory of the run.
type applyRun struct {
	layer, tar []byte
	upper      string
}

// ReaderAt has containerd's applier read the layer: the run is its content store.
func (r *applyRun) ReaderAt(context.Context, ocispec.Descriptor) (content.ReaderAt, error) {
	return blob{bytes.NewReader(r.layer)}, nil
}

type blob struct{ *bytes.Reader }

func (blob) Close() error { return nil }

// containerd inflates, hashes and writes in one goroutine, unless it finds igzip or unpigz.
func (r *applyRun) containerd(ctx context.Context) error {
	overlay := mount.Mount{Type: "overlay", Options: []string{"lowerdir=/var/empty", "upperdir=" + r.upper}}
	_, err := apply.NewFileSystemApplier(r).Apply(ctx, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip}, []mount.Mount{overlay})
	return err
}

// beside writes as containerd does, and inflates and hashes beside that.
func (r *applyRun) beside(ctx context.Context) error {
	z, err := gzip.NewReader(bytes.NewReader(r.layer))
	if err != nil {
		return err
	}
	read, write := io.Pipe()
	hashed := make(chan error, 1)
	go func() {
		_, err := io.CopyBuffer(io.MultiWriter(sha256.New(), write), struct{ io.Reader }{z}, make([]byte, 1<<20))
		hashed <- errors.Join(err, write.CloseWithError(err))
	}()
	err = r.writeFrom(ctx, read)
	if err == nil {
		_, err = io.Copy(io.Discard, read) // what is behind the end of the tar
	}
	return errors.Join(err, read.CloseWithError(err), <-hashed)
}

func (r *applyRun) inflate(context.Context) error {
	z, err := gzip.NewReader(bytes.NewReader(r.layer))
	if err != nil {
		return err
	}
	n, err := io.Copy(io.Discard, z)
	if err == nil && n != int64(len(r.tar)) {
		err = fmt.Errorf("inflated %d bytes of %d", n, len(r.tar))
	}
	return err
}

func (r *applyRun) hash(context.Context) error {
	_, err := sha256.New().Write(r.tar)
	return err
}

func (r *applyRun) write(ctx context.Context) error { return r.writeFrom(ctx, bytes.NewReader(r.tar)) }

func (r *applyRun) writeFrom(ctx context.Context, tar io.Reader) error {
	_, err := archive.Apply(ctx, r.upper, tar, archive.WithConvertWhiteout(archive.OverlayConvertWhiteout))
	return err
}
