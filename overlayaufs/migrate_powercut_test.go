package overlayaufs

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"testing"
)

// A power cut in the middle of a migration leaves a place that goes on, wherever in it the disk stands.
func TestMigratePowerCut(t *testing.T) {
	t.Run("ext4", func(t *testing.T) { testMigrateCut(t, "ext4", "mkfs.ext4", "-q") })
	t.Run("xfs", func(t *testing.T) { testMigrateCut(t, "xfs", "mkfs.xfs", "-q") })
}

func testMigrateCut(t *testing.T, fstype string, mkfs ...string) {
	t.Helper()
	dir, image := tDisk(t, fstype, mkfs...)
	roots := []string{filepath.Join(dir, "half"), filepath.Join(dir, "done")}
	layers, want := tPlace(t, roots[0])
	if _, again := tPlace(t, roots[1]); !slices.Equal(want, again) {
		t.Fatal(again)
	}
	m := there
	m.Layers = layers
	halfway := errors.New("halfway")
	ctx, stop := context.WithCancelCause(t.Context())
	m.Progress = func(p Progress) {
		if !p.Looking && p.Done == 1 {
			stop(halfway)
		}
	}
	_, doneErr := Migrate(t.Context(), Config{Root: roots[1]}, Migration{From: m.From, To: m.To, Layers: slices.Clone(layers)})
	_, err := Migrate(ctx, Config{Root: roots[0]}, m)
	if cutErr := cutPower(dir); cutErr != nil || doneErr != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("%v, %v, %v", cutErr, doneErr, err)
	}
	tUnmount(t, dir)

	if dir, err = tMountImage(t, fstype, image); err != nil {
		t.Fatal(err)
	}
	defer tUnmount(t, dir)
	for i, name := range []string{"half", "done"} {
		root := filepath.Join(dir, name)
		m.Progress = nil
		out, err := Migrate(t.Context(), Config{Root: root}, m)
		if err != nil || out.Resumed != (i == 0) || out.Already != (i == 1) {
			t.Errorf("%s: %+v, %v", name, out, err)
		}
		if got := view(t, formOverlay, tBranches(root)); !slices.Equal(got, want) {
			t.Errorf("%s: shows\n%v, and did\n%v", name, got, want)
		}
	}
}
