package guest

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCPIO(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	c := newCPIO(&got)
	c.copyFile("/a/b", file)
	c.device("/a/c", unix.Mkdev(5, 1))
	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	// As cpio --format=newc writes it, but for the inode numbers.
	const zero = "00000000"
	want := "070701" + "00000001" + "000041ed" + zero + zero + "00000001" + zero + zero + zero + zero + zero + zero + "00000002" + zero + "a\x00" +
		"070701" + "00000002" + "000081ed" + zero + zero + "00000001" + zero + "00000005" + zero + zero + zero + zero + "00000004" + zero + "a/b\x00\x00\x00" + "hello\x00\x00\x00" +
		"070701" + "00000003" + "00002180" + zero + zero + "00000001" + zero + zero + zero + zero + "00000005" + "00000001" + "00000004" + zero + "a/c\x00\x00\x00" +
		"070701" + "00000004" + zero + zero + zero + "00000001" + zero + zero + zero + zero + zero + zero + "0000000b" + zero + "TRAILER!!!\x00\x00\x00\x00"
	if got.String() != want {
		t.Errorf("got  %q\nwant %q", got.String(), want)
	}
	c.copyFile("/d", file+"x")
	if c.close() == nil {
		t.Error("a file that is not there is no error")
	}
}

func TestSharedLibraries(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	got, err := sharedLibraries(t.Context(), exe)
	if err != nil {
		t.Fatal(err)
	}
	if raceEnabled && len(got) < 2 { // libc and what loads it
		t.Errorf("got %q", got)
	}
	for _, name := range got {
		if _, err := os.Stat(name); err != nil {
			t.Error(err)
		}
	}
}
