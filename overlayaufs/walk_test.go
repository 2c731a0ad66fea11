package overlayaufs

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDeepTree makes a path longer than PATH_MAX and of more levels than a walk holds descriptors.
func TestDeepTree(t *testing.T) {
	b := tUnprobed(t, Config{})
	if _, err := b.Make(t.Context(), Content{ID: 1}, nil, nil); err != nil {
		t.Fatal(err)
	}
	const depth = 3000
	fd, err := unix.Open(b.path(1, fsName), unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	for range depth {
		if err != nil {
			t.Fatal(err)
		}
		err = errors.Join(unix.Mkdirat(fd, "d", 0o755), unix.Mkdirat(fd, "e", 0o755))
		next, openErr := unix.Openat(fd, "d", unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		err = errors.Join(err, openErr, unix.Close(fd))
		fd = next
	}
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		t.Fatal(err)
	}
	if got, err := b.Usage(t.Context(), tChain(1)); err != nil || got.Inodes != 1+2*depth {
		t.Errorf("usage %+v, %v", got, err)
	}
	wantDeleted(t, b, 1)
}

// TestMountedIsNotTouched binds a directory of the same file system, and another file system, into a layer.
func TestMountedIsNotTouched(t *testing.T) {
	tRoot(t)
	outside := t.TempDir()
	tWrite(t, filepath.Join(outside, "vital"), "data")
	for name, m := range map[string]mountArgs{
		"bind":  {outside, "", unix.MS_BIND},
		"tmpfs": {"tmpfs", "tmpfs", 0},
	} {
		b := tUnprobed(t, Config{})
		if _, err := b.Make(t.Context(), Content{ID: 1}, nil, nil); err != nil {
			t.Fatal(err)
		}
		point := b.path(1, fsName, "a/point")
		if err := os.MkdirAll(point, 0o755); err != nil {
			t.Fatal(err)
		}
		before, err := b.Usage(t.Context(), tChain(1))
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount(m.source, point, m.fstype, m.flags, ""); err != nil {
			t.Fatal(err)
		}
		tWrite(t, filepath.Join(point, "vital"), "data")
		if got, err := b.Usage(t.Context(), tChain(1)); err != nil || got.Inodes != before.Inodes-1 {
			t.Errorf("%s: usage %+v, %v, want one inode less than %+v", name, got, err, before)
		}
		err = b.Delete(t.Context(), Content{ID: 1})
		if !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "1/fs/a/point") {
			t.Errorf("%s: delete: %v", name, err)
		}
		if got := tTree(t, point); got != "vital=data" {
			t.Errorf("%s: mounted: %q", name, got)
		}
		tUnmount(t, point)
		wantDeleted(t, b, 1)
	}
}

type mountArgs struct {
	source, fstype string
	flags          uintptr
}

// TestEndOfContext ends the context in the middle of a walk: at each look at it, one later every time.
func TestEndOfContext(t *testing.T) {
	b := tUnprobed(t, Config{})
	tManyFiles(t, b.path(1, fsName), 500)
	ended := 0
	for n := int32(0); ; n++ {
		err := b.Delete(&countdown{Context: t.Context(), left: n}, Content{ID: 1})
		ids, listErr := b.List(t.Context())
		if listErr != nil {
			t.Fatal(listErr)
		}
		if err == nil {
			if len(ids) != 0 {
				t.Error("not deleted")
			}
			break
		}
		ended++
		if !errors.Is(err, context.Canceled) || !slices.Equal(ids, []uint64{1}) {
			t.Fatalf("%v, list %v", err, ids)
		}
	}
	if ended < 10 {
		t.Errorf("the context was looked at %d times", ended)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, makeErr := b.Make(ctx, Content{ID: 1}, nil, nil)
	_, mountsErr := b.Mounts(ctx, tChain(1), true, nil)
	_, usageErr := b.Usage(ctx, tChain(1))
	_, freezeErr := b.Freeze(ctx, tChain(1))
	_, listErr := b.List(ctx)
	_, _, ownerErr := b.Owner(ctx)
	for i, err := range []error{
		makeErr, mountsErr, usageErr, listErr, ownerErr, freezeErr, b.Delete(ctx, Content{ID: 1}), b.Claim(ctx, "a", 1),
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%d: %v", i, err)
		}
	}
}

// A countdown is a context that ends when it has been asked a number of times.
type countdown struct {
	context.Context //nolint:containedctx // it is one
	left            int32
}

func (c *countdown) Err() error {
	if c.left--; c.left < 0 {
		return context.Canceled
	}
	return nil
}

func FuzzNextDirent(f *testing.F) {
	buf := make([]byte, 4096)
	if err := onDir("/", func(fd int) error {
		n, err := unix.ReadDirent(fd, buf)
		buf = buf[:n]
		return err
	}); err != nil {
		f.Fatal(err)
	}
	f.Add(buf)
	f.Add(binary.NativeEndian.AppendUint16(make([]byte, 16), 20))
	f.Fuzz(func(t *testing.T, buf []byte) {
		for e, rest := nextDirent(buf); e.name != ""; e, rest = nextDirent(rest) {
			if len(rest) >= len(buf) || e.name == "." || e.name == ".." {
				t.Fatalf("%q: %+v", buf, e)
			}
			buf = rest
		}
	})
}

// leaver fails to leave a directory.
type leaver struct{ opaqueFinder }

func (*leaver) entry(int, string, uint8) (bool, error) { return false, nil }
func (*leaver) leave(int, string) error                { return unix.EIO }

// An error says what the walk is for.
func TestWalkNamesTheOperation(t *testing.T) {
	dir := t.TempDir()
	tWrite(t, filepath.Join(dir, "in", "file"), "")
	for op, v := range map[string]visitor{"leave": &leaver{}, "remove": &failingRemover{}} {
		err := onDir(dir, func(fd int) error { return walkTree(t.Context(), fd, "in", v) })
		if pathErr, ok := errors.AsType[*os.PathError](err); !ok || pathErr.Op != op {
			t.Errorf("%v, want %s", err, op)
		}
	}
}

// failingRemover passes over the file that keeps the directory from being removed.
type failingRemover struct{ remover }

func (failingRemover) entry(int, string, uint8) (bool, error) { return false, nil }
