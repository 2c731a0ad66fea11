package overlayaufs

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestOwner(t *testing.T) {
	b := tUnprobed(t, Config{})
	ctx := t.Context()
	wantOwner := func(want string, wantStart uint64) {
		t.Helper()
		if uuid, start, err := b.Owner(ctx); err != nil || uuid != want || start != wantStart {
			t.Errorf("owner %q, %d, %v", uuid, start, err)
		}
	}
	wantOwner("", 0)
	tWrite(t, filepath.Join(b.root, ownerNewName), `{"uu`) // a start that was cut short
	wantOwner("", 0)
	for start := uint64(1); start < 3; start++ {
		if err := b.Claim(ctx, "a", start); err != nil {
			t.Fatal(err)
		}
		wantOwner("a", start)
	}
	if _, err := b.Make(ctx, Content{ID: 1}, nil, nil); err != nil {
		t.Fatal(err)
	}
	wantOwner("a", 2)
	if err := b.Claim(ctx, "", 3); err == nil {
		t.Error("claimed without a uuid")
	}
	if err := os.Remove(filepath.Join(b.root, ownerName)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(b.stopSpares(), b.wipeSpares(ctx)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Owner(ctx); err == nil || !strings.Contains(err.Error(), `holds "1"`) {
		t.Errorf("contents without owner: %v", err)
	}
	if err := b.Claim(ctx, "a", 4); err == nil {
		t.Error("claimed contents without owner")
	}
	if err := os.RemoveAll(b.root); err != nil {
		t.Fatal(err)
	}
	wantOwner("", 0)
}

// A directory of somebody else that bears a name of ours is not taken for a place that is new, and then wiped.
func TestSparesOfNobody(t *testing.T) {
	for _, name := range []string{sparesName, sparePrefix + "1", "spares"} {
		root := t.TempDir()
		file := filepath.Join(root, name, "precious")
		tWrite(t, file, "x")
		b, err := Open(t.Context(), Config{Root: root})
		if err == nil {
			err = errors.Join(b.Claim(t.Context(), "a", 1), b.Close())
		}
		if err == nil || !strings.Contains(err.Error(), "says which store it belongs to") {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(file); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// An owner that nobody would ever write to is an error, and no wait.
func TestOwnerIsPipe(t *testing.T) {
	b := tUnprobed(t, Config{})
	if err := unix.Mkfifo(filepath.Join(b.root, ownerName), 0o600); err != nil {
		t.Fatal(err)
	}
	read := make(chan error, 1)
	go func() {
		_, err := readOwner(b.root)
		read <- err
	}()
	select {
	case err := <-read:
		if err == nil || !strings.Contains(err.Error(), "no regular file") {
			t.Errorf("a pipe: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("a pipe is waited for")
	}
}

func TestOwnerMalformed(t *testing.T) {
	for _, content := range []string{
		"", "{}", "null", `{"uuid":""}`, `{"uuid":"a","start":-1}`, `{"uuid":"a","start":1}x`, `{"uuid":"a","begin":1}`,
		strings.Repeat(" ", maxOwnerSize) + `{"uuid":"a"}`,
	} {
		b := tUnprobed(t, Config{})
		tWrite(t, filepath.Join(b.root, ownerName), content)
		if _, _, err := b.Owner(t.Context()); err == nil || !strings.Contains(err.Error(), "which store") {
			t.Errorf("%q: %v", content, err)
		}
	}
}

func FuzzParseOwner(f *testing.F) {
	f.Add([]byte(`{"uuid":"0b8d6a10-5a0c-4b1e-8f0a-6a1f0e6f2f11","start":18446744073709551615}` + "\n"))
	f.Add([]byte(`{"uuid":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		o, err := parseOwner(data)
		if err != nil {
			return
		}
		again, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		if len(again) > maxOwnerSize {
			return
		}
		if p, err := parseOwner(again); err != nil || p != o {
			t.Errorf("%q: %+v, then %+v, %v", data, o, p, err)
		}
	})
}

func TestValidate(t *testing.T) {
	if err := (Config{Root: "/r", Index: "on", Sync: "off", Driver: "overlay"}).Validate(); err != nil {
		t.Error(err)
	}
	err := Config{Metacopy: "yes"}.Validate()
	if err == nil || !strings.Contains(err.Error(), `union.metacopy = "yes"`) || !strings.Contains(err.Error(), `"off"`) {
		t.Error(err)
	}
	for _, root := range []string{"", "relative", "/", "/a:b", "/a,b", `/a\b`} {
		if _, err := Open(t.Context(), Config{Root: root}); err == nil {
			t.Errorf("opened %q", root)
		}
	}
}
