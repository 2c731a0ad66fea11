package overlayaufs

import "testing"

func TestUpperdirLabel(t *testing.T) {
	b := tUnprobed(t, Config{Root: t.TempDir(), UpperdirLabel: true})
	if got := b.Labels(Content{ID: 7}); len(got) != 1 || got["containerd.io/snapshot/overlay.upperdir"] != b.root+"/7/fs" {
		t.Errorf("labels %v", got)
	}
	if got := tUnprobed(t, Config{}).Labels(Content{ID: 7}); got != nil {
		t.Errorf("labels %v that nobody asked for", got)
	}
}
