package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/admin"
)

// The thin backend records no size at a commit: what all parents take up together is then not known, and not nothing.
func TestSharedIsUnknown(t *testing.T) {
	all := []admin.Snapshot{
		{Name: "n", Key: "known", Usage: &admin.Usage{Bytes: 1024}},
		{Name: "n", Key: "unknown", Parent: "known"},
		{Name: "n", Key: "top", Parent: "unknown"},
		{Name: "n", Key: "tip", Parent: "top", Usage: &admin.Usage{Bytes: 1}},
	}
	var shown []string
	for n := grow(all)[0].roots[0]; ; n = n.children[0] {
		shown = append(shown, n.sharedText())
		if len(n.children) == 0 {
			break
		}
	}
	require.Equal(t, []string{"0 B", "1 KiB", "-", "-"}, shown)
}
