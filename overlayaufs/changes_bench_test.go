package overlayaufs

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"
)

// BenchmarkChanges tells of one changed file, and of 10,000, upon an image of 50,000. It has the cost of the change alone.
func BenchmarkChanges(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root to mount")
	}
	place, err := Open(b.Context(), Config{Root: filepath.Join(b.TempDir(), "union")})
	if err == nil {
		err = place.Claim(b.Context(), "a-store", 1)
	}
	if err != nil {
		b.Fatal(err)
	}
	defer place.Close()
	bImage(b, place)
	for i, changed := range []int{1, 10_000} {
		c := Content{ID: uint64(i + 2)}
		bChange(b, place, c, changed)
		b.Run(fmt.Sprintf("files=%d", changed), func(b *testing.B) { bTell(b, place, c, changed) })
	}
}

// bName returns the path of a file of the image: a thousand in each of fifty directories.
func bName(i int) string { return fmt.Sprintf("d%02d/sub/file%04d", i/1000, i%1000) }

func bImage(b *testing.B, place *Backend) {
	b.Helper()
	if _, err := place.Make(b.Context(), Content{ID: 1}, nil, nil); err != nil {
		b.Fatal(err)
	}
	for i := range 50_000 {
		path := place.path(1, fsName, bName(i))
		if i%1000 == 0 {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				b.Fatal(err)
			}
		}
		if err := os.WriteFile(path, bytes.Repeat([]byte("x"), 100), 0o644); err != nil {
			b.Fatal(err)
		}
	}
}

// bChange writes to files of the image, evenly over its directories.
func bChange(b *testing.B, place *Backend, c Content, files int) {
	b.Helper()
	if _, err := place.Make(b.Context(), c, tChain(1), nil); err != nil {
		b.Fatal(err)
	}
	mounts, err := place.Mounts(b.Context(), append([]Content{c}, tChain(1)...), true, nil)
	if err != nil {
		b.Fatal(err)
	}
	if err := mount.WithTempMount(b.Context(), mounts, func(dir string) error {
		for i := range files {
			if err := os.WriteFile(filepath.Join(dir, bName(i*50_000/files)), []byte("changed"), 0o644); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		b.Fatal(err)
	}
}

func bTell(b *testing.B, place *Backend, c Content, files int) {
	b.Helper()
	lower, upper := place.plan(tChain(1), false, nil), place.plan(append([]Content{c}, tChain(1)...), true, nil)
	for b.Loop() {
		n := 0
		if err := place.Changes(context.Background(), lower, upper, Content{}, func(c Change) error {
			if c.Stat.Mode&unix.S_IFMT == unix.S_IFREG {
				n++
			}
			return nil
		}); err != nil || n != files {
			b.Fatal(n, err)
		}
	}
}
