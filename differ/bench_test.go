package differ

import (
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

// programs is how many bytes of programs are compressed.
const programs = 64 << 20

// BenchmarkGzip compresses the programs of this machine as a layer is, and as containerd does it.
func BenchmarkGzip(b *testing.B) {
	data := mustReadPrograms(b)
	for name, open := range map[string]func(io.Writer) (io.WriteCloser, error){
		"lamina": func(w io.Writer) (io.WriteCloser, error) {
			return newCompressor(w, diff.Config{MediaType: ocispec.MediaTypeImageLayerGzip})
		},
		"containerd": func(w io.Writer) (io.WriteCloser, error) { return compression.CompressStream(w, compression.Gzip) },
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			var size counter
			for b.Loop() {
				size = 0
				z, err := open(&size)
				require.NoError(b, err)
				_, err = z.Write(data)
				require.NoError(b, err)
				require.NoError(b, z.Close())
			}
			b.ReportMetric(100*float64(size)/float64(len(data)), "%")
		})
	}
}

// A counter counts what is written to it.
type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

func mustReadPrograms(b *testing.B) (data []byte) {
	b.Helper()
	require.NoError(b, filepath.WalkDir("/usr/bin", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || len(data) > programs {
			return err
		}
		content, err := os.ReadFile(path)
		data = append(data, content...)
		return err
	}))
	return data
}
