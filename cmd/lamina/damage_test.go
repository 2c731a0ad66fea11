package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A damaged store ends the daemon with a sentence that says what to do. The store and the layers stay as they are.
func TestServeRefusesADamagedStore(t *testing.T) {
	needRoot(t)
	root, address := filepath.Join(t.TempDir(), "root"), tSocketPath(t)
	args := []string{"--config", tFile(t, ""), "--root", root, "--address", address}
	d := startDaemon(t, args...)
	sn := tProxy(t, d, address, "lamina")
	if _, err := sn.Prepare(t.Context(), "active", ""); err != nil {
		t.Fatal(err)
	}
	if code := d.wait(t); code != exitOK {
		t.Fatalf("exit code %d: %q", code, d.stderr.lines())
	}
	store := filepath.Join(root, "lamina.db")
	good, err := os.ReadFile(store)
	if err != nil {
		t.Fatal(err)
	}
	layers := tLayers(t, root)
	flipped := bytes.ReplaceAll(good, []byte("active"), []byte("bctive")) // wherever it is: old pages have it too
	for name, damaged := range map[string][]byte{
		"empty": nil, "cut off": good[:3*os.Getpagesize()], "a bit flipped": flipped, "zeroes": make([]byte, len(good)),
	} {
		if err := os.WriteFile(store, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		d := startDaemon(t, args...)
		select {
		case code := <-d.code:
			said := strings.Join(d.stderr.lines(), "\n")
			if code != exitFailure || !strings.Contains(said, store) {
				t.Errorf("%s: exit code %d: %s", name, code, said)
			}
			if name != "zeroes" && !strings.Contains(said, "put back a copy") { // those are no store
				t.Errorf("%s: it does not say what to do: %s", name, said)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%s: it runs", name)
		}
		if after, err := os.ReadFile(store); err != nil || !bytes.Equal(after, damaged) {
			t.Errorf("%s: the store was changed, %v", name, err)
		}
		if after := tLayers(t, root); after != layers {
			t.Errorf("%s: there are the layers %s, and were %s", name, after, layers)
		}
	}
	if err := os.WriteFile(store, good, 0o600); err != nil {
		t.Fatal(err)
	}
	d = startDaemon(t, args...)
	if _, err := tProxy(t, d, address, "lamina").Stat(t.Context(), "active"); err != nil {
		t.Error(err)
	}
	if code := d.wait(t); code != exitOK {
		t.Errorf("with a copy of the store: exit code %d: %q", code, d.stderr.lines())
	}
}

// tLayers returns the names of what lies in the union root.
func tLayers(t *testing.T, root string) string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(root, "union", "[0-9]*"))
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	return strings.Join(names, " ")
}
