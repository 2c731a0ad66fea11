package overlayaufs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/internal/idmap"
)

// Where the directory that will hold the root is "/", nothing of the trial is seen there.
func TestProbeIDMapInRoot(t *testing.T) {
	tRoot(t)
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "proc"), 0o700); err != nil {
		t.Fatal(err)
	}
	trial, err := idmap.NewTrial(t.Context(), 0, 0, fsType(dir))
	if err != nil {
		t.Fatal(err)
	}
	isoErr := isolated(func() {
		if err = unix.Chroot(dir); err == nil { // of this thread, which ends
			err = tryMapped(trial, "/")
		}
	})
	if err := errors.Join(isoErr, err, trial.Close()); err != nil {
		t.Error(err)
	}
	if got := tNames(t, dir); !slices.Equal(got, []string{"proc"}) {
		t.Errorf("the directory has %q", got)
	}
}

// A disk that hangs is not waited for.
func TestProbeIDMapHangs(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	hangs := make(chan struct{})
	defer close(hangs)
	err := Config{Root: t.TempDir()}.inTime(ctx, func(context.Context) error {
		cancel()
		<-hangs
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestProbeIDMap(t *testing.T) {
	tRoot(t)
	dir := t.TempDir()
	if err := ProbeIDMap(t.Context(), Config{Root: filepath.Join(dir, "not", "yet")}); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("the probe left %v, %v", entries, err)
	}
	if err := ProbeIDMap(t.Context(), Config{Root: dir, Driver: "aufs"}); err == nil {
		t.Error("aufs maps ids")
	}
	// A file system that the kernel cannot map: overlayfs itself.
	b := tBackend(t, Config{Root: filepath.Join(dir, "union")})
	tMustMake(t, b, 1, nil, nil)
	tMustMake(t, b, 2, tChain(1), nil)
	tMounted(t, b, tChain(2, 1), true, nil, func(dir string) {
		err := ProbeIDMap(t.Context(), Config{Root: dir})
		if !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "overlayfs of this kernel cannot be mounted with other ids") {
			t.Errorf("on overlayfs: %v", err)
		}
		other := &Backend{root: b.root, config: Config{Root: dir}}
		if _, err := other.Mounts(t.Context(), tChain(1), false, tMaps); !errors.Is(err, errdefs.ErrFailedPrecondition) {
			t.Errorf("Mounts where the kernel cannot: %v", err)
		}
	})
}
