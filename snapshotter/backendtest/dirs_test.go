package backendtest_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/lamina-snapshotter/lamina/snapshotter"
	"github.com/lamina-snapshotter/lamina/snapshotter/backendtest"
)

func TestDirs(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("LAMINA_TEST_ROOT") == "1" {
			t.Fatal("this test mounts and must run as root")
		}
		t.Skip("this test mounts and needs root")
	}
	backendtest.Run(t, func(_ *testing.T, root string) snapshotter.Backend {
		return backendtest.NewDirs(filepath.Join(root, "dirs"))
	})
}
