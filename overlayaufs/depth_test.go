package overlayaufs

import (
	"path/filepath"
	"testing"
)

// A migration says which chains aufs will not mount.
func TestMigrateTooLong(t *testing.T) {
	root := filepath.Join(t.TempDir(), "union")
	layers, _ := tPlace(t, root)
	for _, n := range []int{127, 128, 200} { // as when a power cut took them: they are not there, and that is no error
		layers = append(layers, Layer{ID: uint64(1000 + n), Below: make([]Content, n-1)})
	}
	m := there
	m.Layers = layers
	if out, err := Migrate(t.Context(), Config{Root: root}, m); err != nil || out.TooLong != (Chains{}) {
		t.Fatalf("%+v, %v", out, err)
	}
	m = back
	m.Layers = layers
	for _, m.DryRun = range []bool{true, false} {
		if out, err := Migrate(t.Context(), Config{Root: root}, m); err != nil || out.TooLong != (Chains{Count: 2, Longest: 200, Limit: 127}) {
			t.Fatalf("%+v, %v", out, err)
		}
	}
}
