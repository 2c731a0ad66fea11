//go:build failpoint

package failpoint

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestHit(t *testing.T) {
	dir := t.TempDir()
	file, log := filepath.Join(dir, "target"), filepath.Join(dir, "log")
	out, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	deaths := 0
	r := &registry{target: "@" + file, log: out, die: func() { deaths++ }}
	expect := func(target, name string, want int) {
		t.Helper()
		if err := os.WriteFile(file, []byte(target+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		r.hit(name)
		if deaths != want {
			t.Fatalf("%d deaths after a hit of %q with target %q, want %d", deaths, name, target, want)
		}
	}
	r.hit("a") // there is no file
	expect("", "a", 0)
	expect("a:2", "a", 0)
	expect("a:2", "b", 0)
	expect("a:2", "a", 1)
	expect("a:2", "a", 1)
	expect("a", "a", 2)
	if text, err := os.ReadFile(log); err != nil || strings.Join(strings.Fields(string(text)), "") != "aaabaaa" {
		t.Errorf("the log is %q, %v", text, err)
	}
}

func TestParse(t *testing.T) {
	for target, valid := range map[string]bool{"": true, "a.b": true, "a:1": true, "a:0": false, "a:x": false, "a:": false} {
		if _, _, err := parse(target); (err == nil) != valid {
			t.Errorf("%q: %v", target, err)
		}
	}
}
