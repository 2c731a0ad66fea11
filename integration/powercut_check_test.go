package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/metadata"
)

// cutTimeout bounds all that is done with what one power cut leaves.
const cutTimeout = time.Minute

// errLost is returned when what was acknowledged is not there after a power cut,
// or cannot be found out.
var errLost = errors.New("lost")

func lost(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{errLost}, args...)...)
}

// A recovery is what a power cut has to leave: what the clients were told before
// it, and what they may have been told next.
type recovery struct {
	config    lamina.Config
	histories []history
	at        map[string]int // the entry of each mark in the log
	cut       int
	cutOff    bool // the store's last commit was
}

// newRecovery returns what a cut of the disk has to leave.
func newRecovery(d *recordedDisk, config lamina.Config, c cut, histories []history) *recovery {
	r := &recovery{config: config, histories: histories, at: map[string]int{"": -1}, cut: c.at}
	for i, e := range d.log.Entries {
		if e.Mark != "" {
			r.at[e.Mark] = i
		}
	}
	return r
}

// latest returns the number of the last state of a history that was acknowledged.
func (r *recovery) latest(h history) int {
	i := len(h.states) - 1
	for r.at[h.marks[i]] >= r.cut {
		i--
	}
	return i
}

// check starts Lamina on what a cut left, checks it, has it delete what is to be
// deleted, and checks what is left then. An error is errLost, or that nobody knows.
func (r *recovery) check(ctx context.Context) error {
	if err := r.checkAsLeft(ctx); err != nil {
		return err
	}
	host, err := lamina.Open(ctx, r.config)
	if err != nil {
		return lost("the start: %w", err)
	}
	err = r.checkRunning(ctx, host)
	if err := errors.Join(err, host.Close()); err != nil {
		return err
	}
	return r.checkStopped(ctx)
}

// checkAsLeft checks the store and the pool's metadata as they were left. A store whose last commit was cut off is left to the
// start, which undoes that.
func (r *recovery) checkAsLeft(ctx context.Context) error {
	_, err := os.Stat(r.storeFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil // before there was one; what was acknowledged is then missing
	}
	err = errors.Join(err, r.checkStore(ctx, func(*metadata.Store) error { return nil }))
	r.cutOff = errors.Is(err, metadata.ErrCutOff)
	if err != nil && !r.cutOff {
		return err
	}
	return r.checkMetadata()
}

func (r *recovery) storeFile() string { return filepath.Join(r.config.Root, "lamina.db") }

// checkStore has a store that nobody has open check itself, and calls f with it.
func (r *recovery) checkStore(ctx context.Context, f func(*metadata.Store) error) error {
	store, err := metadata.Open(r.storeFile(), metadata.Options{ReadOnly: true})
	if err != nil {
		return lost("%w", err)
	}
	defer store.Close()
	for problem, err := range store.Check(ctx) {
		if err != nil {
			return lost("the store's check: %w", err)
		}
		return lost("the store: %v", problem)
	}
	return f(store)
}

// checkMetadata runs thin_check on the metadata of the pool, if there is one yet.
func (r *recovery) checkMetadata() error {
	f, err := os.Open(poolMetadata(r.config.Root))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	head := make([]byte, 4096)
	if _, err := io.ReadFull(f, head); err != nil || bytes.Equal(head, make([]byte, len(head))) {
		return nil // nothing has been written there
	}
	if _, err := command(background, nil, "thin_check", f.Name()); err != nil {
		return lost("%w", err)
	}
	return nil
}

// checkRunning checks all snapshots, deletes what is in the trash, and goes
// through the life of a new snapshot.
func (r *recovery) checkRunning(ctx context.Context, host *lamina.Host) error {
	sn, err := host.Snapshotter(lamina.DefaultName)
	if err != nil {
		return err
	}
	there := map[string]snapshots.Info{}
	if err := sn.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		there[info.Name] = info
		return nil
	}); err != nil {
		return lost("%w", err)
	}
	for key := range there {
		if !strings.HasPrefix(key, lookPrefix) {
			continue
		}
		if err := sn.Remove(ctx, key); err != nil {
			return lost("%w", err)
		}
		delete(there, key)
	}
	for _, h := range r.histories {
		if err := r.checkHistory(ctx, sn, h, there); err != nil {
			return err
		}
	}
	if err := useAgain(ctx, sn, there); err != nil {
		return lost("the first use: %w", err)
	}
	if err := sn.(snapshots.Cleaner).Cleanup(ctx); err != nil {
		return lost("%w", err)
	}
	return nil
}

// useAgain makes, commits and removes a snapshot on one that is there.
func useAgain(ctx context.Context, sn snapshots.Snapshotter, there map[string]snapshots.Info) error {
	parent := ""
	for _, key := range slices.Sorted(maps.Keys(there)) {
		if there[key].Kind == snapshots.KindCommitted {
			parent = key
		}
	}
	mounts, err := sn.Prepare(ctx, "after-active", parent)
	if err != nil {
		return err
	}
	if err := mount.WithTempMount(ctx, mounts, func(dir string) error {
		return os.WriteFile(filepath.Join(dir, "after"), []byte("the cut"), 0o600)
	}); err != nil {
		return err
	}
	if err := sn.Commit(ctx, "after", "after-active"); err != nil {
		return err
	}
	return sn.Remove(ctx, "after")
}

// checkHistory checks what one client was told.
func (r *recovery) checkHistory(ctx context.Context, sn snapshots.Snapshotter, h history, there map[string]snapshots.Info) error {
	i := r.latest(h)
	now, next := h.states[i], h.states[min(i+1, len(h.states)-1)]
	for key := range now {
		if _, ok := there[key]; !ok && next[key].kind == now[key].kind {
			return lost("%s is missing", key)
		}
	}
	for key := range there {
		_, isNow := now[key]
		_, isNext := next[key]
		if !isNow && !isNext && h.everHad(key) {
			return lost("%s is there again", key)
		}
	}
	if h.steps && !now.shown(h, there) && !next.shown(h, there) {
		return lost("there are %v, and it should be %v or %v", slices.Sorted(maps.Keys(there)), now, next)
	}
	for _, key := range slices.Sorted(maps.Keys(there)) {
		want, known := now[key]
		if !known { // what is under way may have happened
			want, known = next[key]
		}
		if !known {
			continue
		}
		if err := checkHeld(ctx, sn, there[key], want); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	return nil
}

// everHad says whether the client ever knew that key.
func (h history) everHad(key string) bool {
	return slices.ContainsFunc(h.states, func(s state) bool { _, ok := s[key]; return ok })
}

// shown says whether of the client's keys just those of s are there, with their
// kinds.
func (s state) shown(h history, there map[string]snapshots.Info) bool {
	for key, want := range s {
		if info, ok := there[key]; !ok || info.Kind != want.kind || info.Parent != want.parent {
			return false
		}
	}
	for key := range there {
		if _, ok := s[key]; !ok && h.everHad(key) {
			return false
		}
	}
	return true
}

func (s state) String() string { return fmt.Sprint(slices.Sorted(maps.Keys(s))) }

// checkHeld checks the content of a snapshot.
func checkHeld(ctx context.Context, sn snapshots.Snapshotter, info snapshots.Info, want held) error {
	if info.Kind != want.kind || info.Parent != want.parent {
		return lost("it is %v on %q, and was %v on %q", info.Kind, info.Parent, want.kind, want.parent)
	}
	var tree map[string]file
	var err error
	synced := map[string]string{}
	if _, err := sn.Usage(ctx, info.Name); err != nil { // of a content that nobody has mounted again
		return lost("%w", err)
	}
	if want.kind == snapshots.KindCommitted {
		tree, err = lookAt(ctx, sn, info.Name)
	} else {
		err = lookInto(ctx, sn, info.Name, func(dir string) (err error) {
			for name := range want.synced {
				content, err := os.ReadFile(filepath.Join(dir, name))
				if err != nil {
					return err
				}
				synced[name] = string(content)
			}
			if want.tree != nil {
				tree, err = readTree(dir)
			}
			return err
		})
	}
	if err != nil {
		return lost("%w", err)
	}
	for name, content := range want.synced {
		if synced[name] != content {
			return lost("%s was synced with %d bytes and has %d other ones", name, len(content), len(synced[name]))
		}
	}
	if want.tree == nil {
		return nil
	}
	if d := differences(tree, want.tree); len(d) > 0 {
		return lost("%s", strings.Join(d, "\n"))
	}
	return nil
}

// lookInto calls f with where a snapshot is mounted that is not committed.
func lookInto(ctx context.Context, sn snapshots.Snapshotter, key string, f func(dir string) error) error {
	mounts, err := sn.Mounts(ctx, key)
	if err != nil {
		return err
	}
	return mount.WithTempMount(ctx, mounts, f)
}

// checkStopped checks that what is left in the root is what the store knows.
func (r *recovery) checkStopped(ctx context.Context) error {
	return r.checkStore(ctx, func(store *metadata.Store) error {
		trash, err := store.Trash(ctx)
		if err != nil {
			return err
		}
		if len(trash) > 0 {
			return lost("the trash has %v after it was emptied", trash)
		}
		medium, found := metadata.Directory, directories
		if r.config.Snapshotters[lamina.DefaultName].Backend == lamina.BackendThin {
			medium, found = metadata.Volume, poolVolumes
			if err := r.checkMetadata(); err != nil {
				return err
			}
		}
		contents, err := store.Contents(medium)
		if err != nil {
			return err
		}
		known := map[string]bool{}
		for _, link := range contents {
			known[fmt.Sprint(link.Content())] = true
		}
		names, err := found(r.config.Root)
		if err != nil {
			return err
		}
		for _, name := range names {
			if !known[name] {
				return lost("content %s is left, and the store does not know it", name)
			}
			delete(known, name)
		}
		if len(known) > 0 {
			return lost("the contents %v are missing", slices.Sorted(maps.Keys(known)))
		}
		return nil
	})
}

// directories returns the numbers of the contents of the union backend in a root.
func directories(root string) (names []string, err error) {
	found, err := filepath.Glob(filepath.Join(root, "union", "[0-9]*"))
	for _, path := range found {
		names = append(names, filepath.Base(path))
	}
	return names, err
}

// poolVolumes returns the numbers of the volumes in the pool in a root.
func poolVolumes(root string) ([]string, error) { return thinLS(poolMetadata(root)) }

// recover checks what a cut leaves, in bounded time.
func (d *recordedDisk) recover(t *testing.T, config lamina.Config, c cut, histories []history) error {
	t.Helper()
	ctx, cancel := bounded(t)
	defer cancel()
	r := newRecovery(d, config, c, histories)
	err := d.with(c, func() error { return r.check(ctx) })
	if r.cutOff {
		d.cutOff++
	}
	return err
}
