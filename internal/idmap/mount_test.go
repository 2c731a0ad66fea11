package idmap

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func tRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		if os.Getenv("LAMINA_TEST_ROOT") == "1" {
			t.Fatal("needs root, and LAMINA_TEST_ROOT=1 says that it must run")
		}
		t.Skip("needs root: it makes a user namespace and mounts")
	}
}

func TestTrial(t *testing.T) {
	tRoot(t)
	dir := t.TempDir()
	for _, owner := range []int{0, trialID, 4_000_000_000} {
		if err := os.Chown(dir, owner, owner+1); err != nil {
			t.Fatal(err)
		}
		trial, err := NewTrial(t.Context(), uint32(owner), uint32(owner+1), "ext4")
		if err != nil {
			t.Fatal(err)
		}
		f, err := trial.Clone(dir)
		if err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil || trial.Check(&st) == nil || int(st.Uid) != owner {
			t.Errorf("the directory itself: %v, of %d", err, st.Uid)
		}
		if err := errors.Join(f.Close(), trial.Close()); err != nil {
			t.Error(err)
		}
	}
}

// TestTrialRefused tries on a file system that the kernel never maps.
func TestTrialRefused(t *testing.T) {
	tRoot(t)
	var st unix.Stat_t
	if err := unix.Stat("/proc", &st); err != nil {
		t.Fatal(err)
	}
	trial, err := NewTrial(t.Context(), st.Uid, st.Gid, "proc")
	if err != nil {
		t.Fatal(err)
	}
	defer trial.Close()
	f, err := trial.Clone("/proc")
	if !errors.Is(err, unix.EINVAL) {
		t.Errorf("/proc was mapped: %v, %v", f, err)
	}
	if _, err := trial.Clone(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nothing was mapped: %v", err)
	}
}
