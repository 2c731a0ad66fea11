package metadata_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/lamina-snapshotter/lamina/metadata"
)

// The content of a snapshot is made under a reserved id, and then recorded.
func ExampleStore_Create() {
	dir, err := os.MkdirTemp("", "example-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	store, err := metadata.Open(filepath.Join(dir, "lamina.db"), metadata.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()

	id := store.ReserveID()
	// ... make the directory or the volume ...
	err = store.Create(context.Background(), metadata.Snapshot{
		ID: id, Name: "lamina", Key: "layer", Kind: snapshots.KindActive,
		Placement: metadata.Placement{Medium: metadata.Directory},
	})
	if err != nil {
		log.Fatal(err)
	}
	sn, err := store.Get("lamina", "layer")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(sn.ID == id, sn.Kind, sn.Placement.Medium)
	for problem, err := range store.Check(context.Background()) {
		fmt.Println(problem, err)
	}
	// Output: true Active directory
}
