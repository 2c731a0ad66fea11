package integration

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/log"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina"
)

// benchHost opens Lamina with the union backend and one committed layer,
// "base", of that many files.
func benchHost(b *testing.B, sync string, files int) snapshots.Snapshotter {
	b.Helper()
	log.L.Logger.SetOutput(io.Discard)
	if os.Geteuid() != 0 {
		b.Skip("the union backend needs root")
	}
	config := lamina.DefaultConfig()
	config.Root = filepath.Join(b.TempDir(), "lamina")
	config.Union.Sync = sync
	host, err := lamina.Open(b.Context(), config)
	require.NoError(b, err)
	b.Cleanup(func() { _ = host.Close() })
	sn, err := host.Snapshotter(lamina.DefaultName)
	require.NoError(b, err)
	mounts, err := sn.Prepare(b.Context(), "active", "")
	require.NoError(b, err)
	tree := source(mounts)
	for i := range files {
		if i%100 == 0 {
			require.NoError(b, os.Mkdir(filepath.Join(tree, fmt.Sprint(i/100)), 0o755))
		}
		require.NoError(b, os.WriteFile(filepath.Join(tree, fmt.Sprint(i/100), fmt.Sprint(i)), []byte("x"), 0o644))
	}
	require.NoError(b, sn.Commit(b.Context(), "base", "active"))
	return sn
}

func source(mounts []mount.Mount) string { return mounts[0].Source }

// BenchmarkUnion times each operation of the snapshotter on the union backend,
// in process.
func BenchmarkUnion(b *testing.B) {
	b.Run("PrepareRemove", func(b *testing.B) {
		sn := benchHost(b, "off", 100)
		for i := 0; b.Loop(); i++ {
			if _, err := sn.Prepare(b.Context(), fmt.Sprint(i), "base"); err != nil {
				b.Fatal(err)
			}
			if err := sn.Remove(b.Context(), fmt.Sprint(i)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("PrepareRemove32", func(b *testing.B) { benchAtOnce(b, 32) })
	for _, sync := range []string{"off", "commit"} {
		b.Run("PrepareCommit/sync="+sync, func(b *testing.B) {
			sn := benchHost(b, sync, 100)
			for i := 0; b.Loop(); i++ {
				if _, err := sn.Prepare(b.Context(), fmt.Sprint(i), "base"); err != nil {
					b.Fatal(err)
				}
				if err := sn.Commit(b.Context(), fmt.Sprint("done-", i), fmt.Sprint(i)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("Usage20000Again", func(b *testing.B) {
		sn := benchHost(b, "off", 20_000)
		for b.Loop() {
			if _, err := sn.Usage(b.Context(), "base"); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// benchAtOnce prepares and removes from several goroutines; the time is that of
// one pair.
func benchAtOnce(b *testing.B, clients int) {
	b.Helper()
	sn := benchHost(b, "off", 100)
	var next atomic.Int64
	var wg sync.WaitGroup
	b.ResetTimer()
	for range clients {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
				key := fmt.Sprint(i)
				if _, err := sn.Prepare(b.Context(), key, "base"); err != nil {
					b.Error(err)
					return
				}
				if err := sn.Remove(b.Context(), key); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}
