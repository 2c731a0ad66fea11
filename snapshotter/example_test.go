package snapshotter_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/lamina-snapshotter/lamina/metadata"
	"github.com/lamina-snapshotter/lamina/snapshotter"
	"github.com/lamina-snapshotter/lamina/snapshotter/backendtest"
)

// A set takes over a store and its backends, and gives a snapshotter for each name.
func ExampleOpen() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "example-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	store, err := metadata.Open(filepath.Join(dir, "lamina.db"), metadata.Options{})
	if err != nil {
		log.Fatal(err)
	}
	set, err := snapshotter.Open(ctx, snapshotter.Config{
		Store: store,
		Backends: map[metadata.Medium]snapshotter.Backend{
			metadata.Directory: backendtest.NewDirs(filepath.Join(dir, "contents")),
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer set.Close()

	sn, err := set.Snapshotter("lamina", metadata.Directory)
	if err != nil {
		log.Fatal(err)
	}
	mounts, err := sn.Prepare(ctx, "container", "")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(mounts[0].Type, mounts[0].Options)
	if err := sn.Commit(ctx, "layer", "container"); err != nil {
		log.Fatal(err)
	}
	info, err := sn.Stat(ctx, "layer")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(info.Kind)
	// Output:
	// bind [rw rbind]
	// Committed
}
