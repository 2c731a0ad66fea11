package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

const (
	stormSnapshots = 4       // that a client has at most
	stormFile      = 8 << 10 // bytes of a file, at most
	stormLabel     = "containerd.io/gc.storm"
)

// A stormSnap is a snapshot as it must be. It is never changed.
type stormSnap struct {
	kind   snapshots.Kind
	parent string
	label  string
	files  map[string]string
}

// A stormModel is what a client must find, by key.
type stormModel map[string]stormSnap

// with returns a model with a change.
func (m stormModel) with(change func(stormModel)) stormModel {
	next := maps.Clone(m)
	change(next)
	return next
}

// leaves returns the keys of snapshots of these kinds without children, sorted.
func (m stormModel) leaves(kinds ...snapshots.Kind) (keys []string) {
	parents := map[string]bool{}
	for _, s := range m {
		parents[s.parent] = true
	}
	for key, s := range m {
		if !parents[key] && slices.Contains(kinds, s.kind) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

// compare returns how what was found differs.
func (m stormModel) compare(found map[string]snapshots.Info) error {
	for key, i := range found {
		s, ok := m[key]
		if !ok {
			return fmt.Errorf("%s is there: %+v", key, i)
		}
		if i.Kind != s.kind || i.Parent != s.parent || len(i.Labels) != 1 || i.Labels[stormLabel] != s.label {
			return fmt.Errorf("%s is %+v, want %+v", key, i, s)
		}
	}
	for key, s := range m {
		if _, ok := found[key]; !ok {
			return fmt.Errorf("%s is missing: %v on %s", key, s.kind, s.parent)
		}
	}
	return nil
}

// A stormStep is one call that changes something.
type stormStep struct {
	name  string
	call  func(context.Context, snapshots.Snapshotter) error
	after stormModel
	again func(error) bool // the answer if it has happened already
}

type stormClient struct {
	run   *stormRun
	name  string
	rng   *rand.Rand
	lives chan *life
	made  int // numbers the keys

	model stormModel
	cut   *stormStep // whether it has happened is not known
	retry *stormStep // it is to be called again
	done  bool       // and has happened
}

func newStormClient(s *stormRun, i int, rng *rand.Rand) *stormClient {
	return &stormClient{run: s, name: clientName(i), rng: rng, lives: make(chan *life), model: stormModel{}}
}

// live works until there are no more lives.
func (c *stormClient) live() {
	for l := range c.lives {
		err := c.verify(l)
		if err != nil {
			err = fmt.Errorf("client %s: %w", c.name, err)
		}
		l.verified <- err
		for err == nil && !l.last && !l.isOver(nil) {
			if err = c.work(l); err != nil {
				c.run.t.Errorf("client %s, in the life before kill %d: %v", c.name, c.run.kills+1, err)
			}
		}
	}
}

// verify finds out what became of the step that was cut off, and compares what
// there is with what must be. In the last life it then removes all.
func (c *stormClient) verify(l *life) error {
	found := l.of(c.name)
	if c.cut != nil {
		c.run.cut.Add(1)
		c.retry, c.done, c.cut = c.cut, false, nil
		before, after := c.model.compare(found), c.retry.after.compare(found)
		if after == nil && before != nil {
			c.run.happened.Add(1)
			c.model, c.done = c.retry.after, true
		} else if before != nil {
			return fmt.Errorf("%s was cut off and has neither happened (%w) nor not (%w)", c.retry.name, after, before)
		}
	}
	if err := c.model.compare(found); err != nil {
		return err
	}
	for _, key := range c.model.leaves(snapshots.KindActive, snapshots.KindView, snapshots.KindCommitted) {
		if err := c.look(l, key); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		c.run.compared.Add(1)
	}
	if l.last {
		return c.removeAll(l)
	}
	return nil
}

// look compares the files of a snapshot.
func (c *stormClient) look(l *life, key string) error {
	ctx, cancel := context.WithTimeout(c.run.t.Context(), stormTimeout)
	defer cancel()
	s := c.model[key]
	if s.kind != snapshots.KindCommitted {
		mounts, err := l.sn.Mounts(ctx, key)
		if err != nil {
			return err
		}
		return compare(ctx, mounts, s.files)
	}
	view := c.name + "-look"
	mounts, err := l.sn.View(ctx, view, key)
	if err != nil {
		return err
	}
	return errors.Join(compare(ctx, mounts, s.files), l.sn.Remove(ctx, view))
}

func (c *stormClient) removeAll(l *life) error {
	for len(c.model) > 0 {
		for _, key := range c.model.leaves(snapshots.KindActive, snapshots.KindView, snapshots.KindCommitted) {
			if err := l.sn.Remove(c.run.t.Context(), key); err != nil {
				return err
			}
			delete(c.model, key)
		}
	}
	return nil
}

// work does one step. An error that the death of the daemon explains is none.
func (c *stormClient) work(l *life) error {
	ctx, cancel := context.WithTimeout(c.run.t.Context(), stormTimeout)
	defer cancel()
	step, done := c.retry, c.done
	if step == nil {
		if active := c.model.leaves(snapshots.KindActive); len(active) > 0 && c.rng.IntN(3) == 0 {
			return c.unlessOver(l, c.write(ctx, l, c.pick(active)))
		}
		step, done = c.step(), false
	}
	err := step.call(ctx, l.sn)
	if errdefs.IsUnavailable(err) && l.isOver(err) {
		if c.retry == nil {
			c.cut = step
		} else if !done { // it may have happened now
			c.cut, c.retry = step, nil
		}
		return nil
	}
	c.retry = nil
	switch {
	case done && step.again != nil:
		if !step.again(err) {
			return fmt.Errorf("%s, which has happened already, is answered with: %w", step.name, err)
		}
	case err != nil:
		return fmt.Errorf("%s: %w", step.name, err)
	default:
		c.model = step.after
	}
	c.run.acknowledged.Add(1)
	return nil
}

func (c *stormClient) unlessOver(l *life, err error) error {
	if errdefs.IsUnavailable(err) && l.isOver(err) {
		return nil
	}
	return err
}

func (c *stormClient) pick(keys []string) string { return keys[c.rng.IntN(len(keys))] }

// write writes a file into an active snapshot, as a process in a container does,
// and reads it again. The daemon may die meanwhile, and start again.
func (c *stormClient) write(ctx context.Context, l *life, key string) error {
	mounts, err := l.sn.Mounts(ctx, key)
	if err != nil {
		return err
	}
	content := make([]byte, c.rng.IntN(stormFile))
	for i := range content {
		content[i] = byte(c.rng.Uint32())
	}
	name := fmt.Sprintf("f%d", c.rng.IntN(6))
	held := time.Duration(c.rng.IntN(20)) * time.Millisecond
	err = mount.WithTempMount(ctx, mounts, func(dir string) error {
		temp := filepath.Join(dir, "temp")
		if err := writeSynced(temp, content); err != nil {
			return err
		}
		time.Sleep(held) // to be mounted when the daemon dies
		if err := os.Rename(temp, filepath.Join(dir, name)); err != nil {
			return err
		}
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err == nil && !bytes.Equal(got, content) {
			err = fmt.Errorf("%s of %s does not hold what was written to it", name, key)
		}
		return err
	})
	if err != nil {
		return err
	}
	s := c.model[key]
	s.files = maps.Clone(s.files)
	s.files[name] = string(content)
	c.model = c.model.with(func(m stormModel) { m[key] = s })
	return nil
}

func writeSynced(path string, content []byte) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Sync(), f.Close())
}

// step chooses what to do next.
func (c *stormClient) step() *stormStep {
	if len(c.model) >= stormSnapshots {
		return c.remove(c.pick(c.model.leaves(snapshots.KindActive, snapshots.KindView, snapshots.KindCommitted)))
	}
	committed := append(c.model.leaves(snapshots.KindCommitted), "base")
	active := c.model.leaves(snapshots.KindActive)
	all := c.model.leaves(snapshots.KindActive, snapshots.KindView, snapshots.KindCommitted)
	switch n := c.rng.IntN(10); {
	case n < 3 && len(active) > 0:
		return c.commit(c.pick(active))
	case n == 3 && len(all) > 0:
		return c.remove(c.pick(all))
	case n == 4 && len(all) > 0:
		return c.update(c.pick(all))
	case n == 5:
		return c.create(snapshots.KindView, c.pick(committed))
	default:
		return c.create(snapshots.KindActive, c.pick(committed))
	}
}

// key returns a new key.
func (c *stormClient) key(kind string) string {
	c.made++
	return fmt.Sprintf("%s-%s-%d", c.name, kind, c.made)
}

func (c *stormClient) create(kind snapshots.Kind, parent string) *stormStep {
	key, label := c.key("s"), fmt.Sprint(c.rng.IntN(1000))
	s := stormSnap{kind: kind, parent: parent, label: label, files: map[string]string{"base": "base"}}
	if p, ok := c.model[parent]; ok {
		s.files = p.files
	}
	labels := snapshots.WithLabels(map[string]string{stormLabel: label})
	return &stormStep{
		name: fmt.Sprintf("%v %s on %s", kind, key, parent),
		call: func(ctx context.Context, sn snapshots.Snapshotter) (err error) {
			if kind == snapshots.KindView {
				_, err = sn.View(ctx, key, parent, labels)
			} else {
				_, err = sn.Prepare(ctx, key, parent, labels)
			}
			return err
		},
		after: c.model.with(func(m stormModel) { m[key] = s }),
		again: errdefs.IsAlreadyExists,
	}
}

func (c *stormClient) commit(key string) *stormStep {
	name, label, s := c.key("l"), fmt.Sprint(c.rng.IntN(1000)), c.model[key]
	s.kind, s.label = snapshots.KindCommitted, label
	labels := snapshots.WithLabels(map[string]string{stormLabel: label})
	return &stormStep{
		name: fmt.Sprintf("commit %s as %s", key, name),
		call: func(ctx context.Context, sn snapshots.Snapshotter) error { return sn.Commit(ctx, name, key, labels) },
		after: c.model.with(func(m stormModel) {
			delete(m, key)
			m[name] = s
		}),
		again: func(err error) bool { return errdefs.IsAlreadyExists(err) || errdefs.IsNotFound(err) },
	}
}

func (c *stormClient) remove(key string) *stormStep {
	return &stormStep{
		name:  "remove " + key,
		call:  func(ctx context.Context, sn snapshots.Snapshotter) error { return sn.Remove(ctx, key) },
		after: c.model.with(func(m stormModel) { delete(m, key) }),
		again: errdefs.IsNotFound,
	}
}

// update may be called again and again.
func (c *stormClient) update(key string) *stormStep {
	s := c.model[key]
	s.label = fmt.Sprint("u", c.rng.IntN(1000))
	return &stormStep{
		name: "update " + key,
		call: func(ctx context.Context, sn snapshots.Snapshotter) error {
			_, err := sn.Update(ctx, snapshots.Info{Name: key, Labels: map[string]string{stormLabel: s.label}})
			return err
		},
		after: c.model.with(func(m stormModel) { m[key] = s }),
	}
}
