//go:build ignore

// Command make writes a store with snapshots of all kinds, and beside it what it holds, with the metadata package of the commit that it
// is run in. "make" in this directory runs it in the last commit of each schema.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"reflect"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/lamina-snapshotter/lamina/metadata"
)

// A dump is what a store holds.
type dump struct {
	UUID      string
	Starts    uint64
	Answered  map[string]uint64 // by medium
	Snapshots []metadata.Snapshot
	Trash     []metadata.Link
}

var (
	ctx   = context.Background()
	store *metadata.Store
)

func main() {
	var err error
	store, err = metadata.Open(os.Args[1], metadata.Options{})
	must(err)
	for range 3 {
		_, err = store.Start(ctx)
		must(err)
	}
	names := []string{"lamina", "another name", metadata.Templates}
	union("lamina")
	union("another name")
	thin("lamina")
	must(store.Unanswered(ctx, metadata.Volume))
	_, err = store.Start(ctx)
	must(err)

	d := dump{UUID: store.UUID(), Answered: map[string]uint64{}}
	d.Starts, err = store.Starts()
	must(err)
	for _, m := range []metadata.Medium{metadata.Directory, metadata.Volume} {
		d.Answered[m.String()], err = store.LastAnswered(m)
		must(err)
	}
	for _, name := range names {
		must(store.Walk(ctx, name, func(sn metadata.Snapshot) error {
			d.Snapshots = append(d.Snapshots, sn)
			return nil
		}))
	}
	d.Trash, err = store.Trash(ctx)
	must(err)
	must(store.Close())
	text, err := json.MarshalIndent(d, "", "\t")
	must(err)
	must(os.WriteFile(os.Args[2], append(text, '\n'), 0o644))
}

// union makes an image of layers, containers, views and trash, with labels that have indexes and those that have none.
func union(name string) {
	directory := func() metadata.Placement {
		p := metadata.Placement{Medium: metadata.Directory}
		// Since version 3.
		if f := reflect.ValueOf(&p).Elem().FieldByName("Project"); f.IsValid() {
			f.SetUint(1<<30 + uint64(store.ReserveID()))
		}
		return p
	}
	parent := ""
	for i := range 12 {
		key := fmt.Sprintf("sha256:%064d", i)
		create(name, "extract-"+key, parent, snapshots.KindActive, directory(), map[string]string{"containerd.io/gc.root": "2026-11-22T00:00:00Z"})
		must(store.Commit(ctx, name, key, "extract-"+key, metadata.CommitOptions{
			Labels: map[string]string{"containerd.io/snapshot.ref": key, "empty": "x", "long": strings.Repeat("é", 300)},
			Usage:  &snapshots.Usage{Size: int64(i) * 4096, Inodes: int64(i)},
		}))
		parent = key
	}
	for i := range 5 {
		create(name, fmt.Sprintf("container %d\n", i), parent, snapshots.KindActive, directory(), nil)
	}
	create(name, "view", parent, snapshots.KindView, metadata.Placement{}, map[string]string{"a": "b"})
	for _, key := range []string{"container 0\n", "container 3\n"} {
		_, err := store.Remove(ctx, name, key)
		must(err)
	}
}

const template = "ext4 10GiB"

// thin makes a template, a chain of volumes and trash.
func thin(name string) {
	volume := func(size uint64) metadata.Placement {
		device, err := store.ReserveDevice()
		must(err)
		return metadata.Placement{Medium: metadata.Volume, Whole: true, Device: device, Size: size}
	}
	create(metadata.Templates, template, "", snapshots.KindCommitted, volume(10<<30), nil)
	parent := ""
	for _, key := range []string{"base", "middle", "top"} {
		create(name, "extract "+key, parent, snapshots.KindActive, volume(10<<30), nil)
		must(store.Commit(ctx, name, "thin "+key, "extract "+key, metadata.CommitOptions{}))
		parent = "thin " + key
	}
	create(name, "thin container", parent, snapshots.KindActive, volume(20<<30), map[string]string{"containerd.io/snapshot/max-size": "21474836480"})
	must(store.SetUsage(ctx, get(name, "thin middle").ID, snapshots.Usage{}))
	create(name, "gone", parent, snapshots.KindActive, volume(10<<30), nil)
	_, err := store.Remove(ctx, name, "gone")
	must(err)
}

func create(name, key, parent string, kind snapshots.Kind, p metadata.Placement, labels map[string]string) {
	parentID := metadata.ID(0)
	if parent != "" {
		parentID = get(name, parent).ID
	} else if p.Medium == metadata.Volume && name != metadata.Templates {
		parentID = get(metadata.Templates, template).ID
	}
	must(store.Create(ctx, metadata.Snapshot{
		ID: store.ReserveID(), ParentID: parentID, Name: name, Key: key, Kind: kind, Parent: parent, Placement: p, Labels: labels,
	}))
}

func get(name, key string) metadata.Snapshot {
	sn, err := store.Get(name, key)
	must(err)
	return sn
}

func must(err error) {
	if err != nil {
		log.Panic(err)
	}
}
