package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/metadata"
)

// known is what the store of a daemon says that there is.
type known struct {
	uuid     string
	contents []string // by their numbers, sorted
	trash    []string
	shown    []string // contents that the kernel needs devices for, sorted
}

// openKilled opens the store of a daemon that was killed, to be read. A commit that the kill has cut off is undone before.
func openKilled(path string) (*metadata.Store, error) {
	store, err := metadata.Open(path, metadata.Options{ReadOnly: true})
	if !errors.Is(err, metadata.ErrCutOff) {
		return store, err
	}
	store, err = metadata.Open(path, metadata.Options{})
	if err == nil {
		err = store.Close()
	}
	if err != nil {
		return nil, err
	}
	return metadata.Open(path, metadata.Options{ReadOnly: true})
}

// readStore checks the store of a daemon that is dead, or runs and has nothing to
// do. It reads a copy, as the daemon has the file locked.
func readStore(dir, root string) (known, error) {
	path := filepath.Join(dir, "copy.db")
	if err := copyFile(filepath.Join(root, "lamina.db"), path); err != nil {
		return known{}, err
	}
	store, err := openKilled(path)
	if err != nil {
		return known{}, err
	}
	defer store.Close()
	for problem, err := range store.Check(context.Background()) {
		if err == nil {
			err = errors.New(problem.String())
		}
		return known{}, fmt.Errorf("the store: %w", err)
	}
	k := known{uuid: store.UUID()}
	for _, medium := range []metadata.Medium{metadata.Directory, metadata.Volume} {
		links, err := store.Contents(medium)
		if err != nil {
			return known{}, err
		}
		for _, l := range links {
			viewed, err := store.Viewed(l.ID)
			if err != nil {
				return known{}, err
			}
			k.contents = append(k.contents, contentName(l))
			if medium == metadata.Volume && (viewed || l.Kind == snapshots.KindActive) {
				k.shown = append(k.shown, contentName(l))
			}
		}
	}
	links, err := store.Trash(context.Background())
	for _, l := range links {
		k.trash = append(k.trash, contentName(l))
	}
	slices.Sort(k.contents)
	slices.Sort(k.shown)
	return k, err
}

func contentName(l metadata.Link) string { return strconv.FormatUint(l.Content(), 10) }

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// requireNoLeak compares what lies in the place of a daemon that runs, and has
// nothing to do, with its store: no content without a record, none missing, no
// trash, and no device that nobody needs. What it still does in the background it
// is given some time for.
func (d *daemon) requireNoLeak(t *testing.T) {
	t.Helper()
	require.NoError(t, poll(reachTimeout, func() error {
		k, err := readStore(d.dir, d.root())
		if err != nil {
			return err
		}
		if len(k.trash) > 0 {
			return fmt.Errorf("the trash has %v", k.trash)
		}
		found, err := d.contents()
		if err != nil {
			return err
		}
		if slices.Sort(found); !slices.Equal(k.contents, found) {
			return fmt.Errorf("there are the contents %v, and the store knows %v", found, k.contents)
		}
		return d.checkDevices(k)
	}))
}

// contents returns the numbers of what lies in the backend's place.
func (d *daemon) contents() ([]string, error) {
	if d.backend.name == lamina.BackendThin {
		return volumesIn(d.root())
	}
	return d.layers(), nil
}

// checkDevices checks that the pool and what is shown have a device, and nothing
// else.
func (d *daemon) checkDevices(k known) error {
	if d.backend.name != lamina.BackendThin {
		return nil
	}
	var found []string
	for _, v := range kernelDevices(ourDevices + k.uuid[:8] + "-") {
		if v.name != "tmeta" && v.name != "tdata" { // what a pool on disks stands on
			found = append(found, v.name)
		}
	}
	slices.Sort(found)
	if want := append(slices.Clone(k.shown), "pool"); !slices.Equal(want, found) {
		return fmt.Errorf("there are the devices %v, and needed are %v", found, want)
	}
	return nil
}

// kernelDevices returns the dm devices whose names begin with a prefix, with what
// follows it. Unlike [volumes] it starts no process, and does not see what has no
// table.
func kernelDevices(prefix string) (found []volume) {
	files, _ := filepath.Glob("/sys/block/dm-*/dm/name")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // gone meanwhile
		}
		if name, ok := strings.CutPrefix(strings.TrimSpace(string(text)), prefix); ok {
			found = append(found, volume{name: name, kernel: strings.Split(file, "/")[3]})
		}
	}
	return found
}
