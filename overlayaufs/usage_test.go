package overlayaufs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/continuity/fs"
	"golang.org/x/sys/unix"
)

// TestUsageIsContinuitys counts a tree with one of everything, as containerd does and as we do.
func TestUsageIsContinuitys(t *testing.T) {
	b := tUnprobed(t, Config{})
	if _, err := b.Make(t.Context(), Content{ID: 1}, nil, nil); err != nil {
		t.Fatal(err)
	}
	dir := b.path(1, fsName)
	wantContinuitys(t, b, 1)
	tManyFiles(t, dir, 2000)
	tWrite(t, filepath.Join(dir, "big"), strings.Repeat("x", 1<<20))
	err := errors.Join(
		os.Link(filepath.Join(dir, "big"), filepath.Join(dir, "link")),
		os.Symlink("/", filepath.Join(dir, "symlink")),
		unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600),
		os.Truncate(filepath.Join(dir, "big"), 1<<30), // sparse
		os.MkdirAll(filepath.Join(dir, strings.Repeat("deep/", 3*windowSize)), 0o755),
	)
	if err != nil {
		t.Fatal(err)
	}
	wantContinuitys(t, b, 1)
	if _, err := b.Usage(t.Context(), tChain(2)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing content: %v", err)
	}
}

func wantContinuitys(t *testing.T, b *Backend, id uint64) {
	t.Helper()
	got, err := b.Usage(t.Context(), tChain(id))
	if err != nil {
		t.Fatal(err)
	}
	want, err := fs.DiskUsage(t.Context(), b.path(id, fsName))
	if err != nil {
		t.Fatal(err)
	}
	if got != (snapshots.Usage{Size: want.Size, Inodes: want.Inodes}) {
		t.Errorf("usage %+v, continuity says %+v", got, want)
	}
}

// tManyFiles makes n files, ten to a directory.
func tManyFiles(tb testing.TB, dir string, n int) {
	tb.Helper()
	for i := range n {
		sub := filepath.Join(dir, fmt.Sprintf("d%d/d%d", i/100, i/10))
		if i%10 == 0 {
			if err := os.MkdirAll(sub, 0o755); err != nil {
				tb.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprint(i)), []byte("x"), 0o600); err != nil {
			tb.Fatal(err)
		}
	}
}

// TestUsageOfChangingContent counts while everything is removed, moved and made again.
func TestUsageOfChangingContent(t *testing.T) {
	b := tUnprobed(t, Config{})
	if _, err := b.Make(t.Context(), Content{ID: 1}, nil, nil); err != nil {
		t.Fatal(err)
	}
	dir := b.path(1, fsName)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			top := filepath.Join(dir, fmt.Sprint("t", i%3))
			_ = os.MkdirAll(filepath.Join(top, strings.Repeat("d/", windowSize+40)), 0o755)
			_ = os.WriteFile(filepath.Join(top, "d/file"), nil, 0o600)
			_ = os.Rename(filepath.Join(top, "d/d/d"), filepath.Join(top, "moved"))
			_ = os.RemoveAll(filepath.Join(dir, fmt.Sprint("t", (i+1)%3)))
		}
	}()
	for range 300 {
		if _, err := b.Usage(t.Context(), tChain(1)); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	<-done
	wantContinuitys(t, b, 1)
}

func BenchmarkUsage(b *testing.B) {
	backend, err := newBackend(Config{Root: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer backend.Close()
	tManyFiles(b, backend.path(1, fsName), 20_000)
	b.Run("lamina", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := backend.Usage(b.Context(), tChain(1)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("continuity", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := fs.DiskUsage(b.Context(), backend.path(1, fsName)); err != nil {
				b.Fatal(err)
			}
		}
	})
}
