package integration

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// stressClients is how many are at work at once.
const stressClients = 16

// An expected snapshot, with the files that it shows.
type expected struct {
	kind     snapshots.Kind
	parent   *expected
	children int
	files    map[string]string
}

// A stressClient does what it likes with snapshots of its own on a layer that all
// share, and compares with what it expects.
type stressClient struct {
	sn    snapshots.Snapshotter
	id    int
	rng   *rand.Rand
	model map[string]*expected
}

// step does one thing, and returns what did not go as it should.
func (c *stressClient) step(ctx context.Context, step int) error {
	key := fmt.Sprintf("%d-%d", c.id, step)
	switch c.rng.IntN(6) {
	case 0, 1:
		return c.make(ctx, key, snapshots.KindActive)
	case 2:
		return c.make(ctx, key, snapshots.KindView)
	case 3:
		return c.commit(ctx, key)
	case 4:
		return c.remove(ctx)
	default:
		return c.look(ctx)
	}
}

// pick returns a snapshot of one of the kinds, if there is any.
func (c *stressClient) pick(kinds ...snapshots.Kind) (string, *expected) {
	var keys []string
	for _, key := range slices.Sorted(maps.Keys(c.model)) {
		if slices.Contains(kinds, c.model[key].kind) {
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		return "", nil
	}
	key := keys[c.rng.IntN(len(keys))]
	return key, c.model[key]
}

// make prepares or views, and writes a file into what can be written.
func (c *stressClient) make(ctx context.Context, key string, kind snapshots.Kind) error {
	name, parent := c.pick(snapshots.KindCommitted)
	files := map[string]string{"base": "base"}
	if parent == nil {
		name = "base"
	} else {
		parent.children++
		maps.Copy(files, parent.files)
	}
	c.model[key] = &expected{kind: kind, parent: parent, files: files}
	if kind == snapshots.KindView {
		mounts, err := c.sn.View(ctx, key, name)
		if err != nil {
			return err
		}
		return compare(ctx, mounts, files)
	}
	mounts, err := c.sn.Prepare(ctx, key, name)
	if err != nil {
		return err
	}
	files[key] = "of " + key
	return mount.WithTempMount(ctx, mounts, func(dir string) error {
		return os.WriteFile(filepath.Join(dir, key), []byte(files[key]), 0o600)
	})
}

func (c *stressClient) commit(ctx context.Context, name string) error {
	key, e := c.pick(snapshots.KindActive)
	if e == nil {
		return nil
	}
	if err := c.sn.Commit(ctx, name, key); err != nil {
		return err
	}
	delete(c.model, key)
	c.model[name] = e
	e.kind = snapshots.KindCommitted
	return nil
}

func (c *stressClient) remove(ctx context.Context) error {
	key, e := c.pick(snapshots.KindActive, snapshots.KindView, snapshots.KindCommitted)
	if e == nil {
		return nil
	}
	err := c.sn.Remove(ctx, key)
	if e.children > 0 {
		if !errdefs.IsFailedPrecondition(err) {
			return errors.Join(fmt.Errorf("removing %s, which has children, is not refused", key), err)
		}
		return nil
	}
	if e.parent != nil {
		e.parent.children--
	}
	delete(c.model, key)
	return err
}

// look measures a snapshot and reads its files.
func (c *stressClient) look(ctx context.Context) error {
	key, e := c.pick(snapshots.KindActive, snapshots.KindView)
	if e == nil {
		return nil
	}
	usage, err := c.sn.Usage(ctx, key)
	if err != nil || usage.Size < 0 || usage.Inodes < 0 || e.kind == snapshots.KindView && usage != (snapshots.Usage{}) {
		return errors.Join(fmt.Errorf("the usage of %s is %+v", key, usage), err)
	}
	mounts, err := c.sn.Mounts(ctx, key)
	if err != nil {
		return err
	}
	return compare(ctx, mounts, e.files)
}
