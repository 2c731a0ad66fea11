package overlayaufs

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Layers that were written one way are not read another way.
func TestFormOfLayersIsKept(t *testing.T) {
	tRoot(t)
	for _, c := range []struct{ was, is Config }{
		{Config{UserXattr: on}, Config{UserXattr: off}},
		{Config{UserXattr: on}, Config{}},
		{Config{}, Config{UserXattr: on}},
		{Config{Metacopy: on}, Config{}},
	} {
		c.was.Root = t.TempDir()
		c.is.Root = c.was.Root
		b := tBackend(t, c.was)
		tClose(t, b)
		b, err := Open(t.Context(), c.is)
		if err != nil {
			t.Errorf("%+v: a place without layers: %v", c, err)
			continue
		}
		tClose(t, b)
		if b, err = Open(t.Context(), c.was); err != nil {
			t.Fatal(err)
		}
		if err := b.Claim(t.Context(), "a-store", 2); err != nil {
			t.Fatal(err)
		}
		tMake(t, b, 1, nil)
		tClose(t, b)
		if b, err = Open(t.Context(), c.is); err == nil {
			tClose(t, b)
			t.Errorf("%+v: the layers are read another way", c)
		} else if !strings.Contains(err.Error(), "union.") {
			t.Errorf("%+v: %v", c, err)
		}
		if b, err = Open(t.Context(), c.was); err != nil {
			t.Fatalf("%+v: %v", c, err)
		}
		tClose(t, b)
	}
}

// btrfs brings back fs without work.
func TestMountsRestoresWork(t *testing.T) {
	b := tUnprobed(t, Config{})
	tMake(t, b, 1, nil)
	tMake(t, b, 2, tChain(1), "kept", "x")
	if err := os.RemoveAll(b.path(2, workName)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Mounts(t.Context(), tChain(2, 1), true, nil); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{workName, fsName + "/kept"} {
		if _, err := os.Lstat(b.path(2, name)); err != nil {
			t.Error(err)
		}
	}
}

// The kernel tells of lost pages once, so one failed sync ends all commits.
func TestFailedSyncIsForGood(t *testing.T) {
	failing := true
	f := newFlusher(func() error {
		if failing {
			return unix.EIO
		}
		return nil
	})
	for range 2 {
		if err := f.flush(context.Background()); !errors.Is(err, unix.EIO) {
			t.Errorf("failing %v: %v", failing, err)
		}
		failing = false
	}
}

func TestFreezeRefusesTornLayer(t *testing.T) {
	b := tUnprobed(t, Config{Volatile: on})
	boot := "boot-1"
	b.bootID = func() (string, error) { return boot, nil }
	tMake(t, b, 2, nil)
	tMake(t, b, 1, tChain(2))
	if _, err := b.Mounts(t.Context(), tChain(1, 2), true, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Freeze(t.Context(), tChain(1)); err != nil {
		t.Error(err)
	}
	boot = "boot-2"
	if _, err := b.Freeze(t.Context(), tChain(1)); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("a layer that a power cut may have torn: %v", err)
	}
}

func TestMakeRefusesTooLongChain(t *testing.T) {
	b := tUnprobed(t, Config{})
	chain := make([]Content, maxLower+1)
	if _, err := b.Make(t.Context(), Content{ID: 1}, chain, nil); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Error(err)
	}
	if _, err := b.Mounts(t.Context(), chain, false, nil); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Error(err)
	}
}

func TestParseID(t *testing.T) {
	for name, want := range map[string]bool{
		"1": true, "4611686018427387903": true, "0": false, "007": false, "-1": false, "18446744073709551615": false, "empty": false,
	} {
		if _, ok := parseID(name); ok != want {
			t.Errorf("%s: %v", name, ok)
		}
	}
}
