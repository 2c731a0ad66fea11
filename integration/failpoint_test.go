package integration

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/integration/guest"
)

// TestFailpoints kills the daemon at each point of internal/failpoint that each
// step of a snapshot's life comes by, and at those of starts and stops. Started
// again, the step has happened or has not, a client's retry succeeds, and nothing
// is left that the store does not know.
func TestFailpoints(t *testing.T) {
	requireRoot(t)
	began, m := time.Now(), matrix{newRig(t, union, union.toml())}
	m.run(t)
	m.undoes(t)
	m.stop()
	m.fullDisk(t)
	m.report(t, began)
	m.requireAll(t, "grow.", "migrate.", "add.", "trim.", "repair.", "thin.", "loop.", "disk.", "template.", "settle.show", "settle.release", "union.project-", "update.announced")
}

// TestThinFailpoints does the same with volumes.
func TestThinFailpoints(t *testing.T) {
	guest.Require(t)
	began, m := time.Now(), matrix{newRig(t, thinExt4, growing(1))}
	m.run(t)
	m.starts(t, "grow", func(n int) { require.NoError(t, m.configure(growing(2+n))) }, "thin.pool-", "grow.")
	m.starts(t, "reboot", func(int) { m.reboot() }, "loop.", "thin.device-", "settle.")
	m.disks(t)
	m.stop()
	m.pools(t)

	x := matrix{newRig(t, thinXFS, thinXFS.toml())}
	x.died, x.kills, x.began, x.startTime = m.died, m.kills, m.began, m.startTime
	x.start()
	x.h.layer("base", "", []byte("base"))
	for _, s := range x.steps() {
		if s.xfs {
			x.step(t, s)
		}
	}
	x.stop()
	x.report(t, began)
	x.requireAll(t, append(madeOnce, "union.", unbidden, "migrate.")...)
}

// madeOnce is of the making and mending of a store, which is the same with each backend.
var madeOnce = []string{"store.temporary", "store.initialised", "store.renamed", "store.undo", "start.checked", "start.counted"}

// growing is a configuration with a pool of that many GiB.
func growing(gib int) string {
	return strings.Replace(thinExt4.toml(), "[thin]", fmt.Sprintf("[thin]\n  data_size = \"%dGiB\"", gib), 1)
}

// A matrix is a rig that dies everywhere.
type matrix struct{ *rig }

func (m matrix) run(t *testing.T) {
	t.Helper()
	m.first(t)
	m.start()
	m.h.layer("base", "", []byte("base"))
	for _, s := range m.steps() {
		if s.on == "" || s.on == m.backend.name {
			m.step(t, s)
		}
	}
	m.starts(t, "start", func(int) {})
	m.stops(t)
}

// report prints the figures.
func (m matrix) report(t *testing.T, began time.Time) {
	t.Helper()
	t.Logf("failpoints: %d points, %d kills, %d starts of %v, %v", len(m.died), m.kills, m.began,
		(m.startTime / time.Duration(m.began)).Round(time.Millisecond), time.Since(began).Round(time.Second))
}

// requireAll checks that the daemon has died at each point in the code, but those
// whose names begin so.
func (m matrix) requireAll(t *testing.T, except ...string) {
	t.Helper()
	for _, name := range pointsInCode(t) {
		excepted := slices.ContainsFunc(except, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
		if !excepted && m.died[name] == 0 {
			t.Errorf("no step of this test comes by the point %s", name)
		}
	}
}

// pointsInCode returns the points that stand in the code. Each does once.
func pointsInCode(t *testing.T) (points []string) {
	t.Helper()
	hit := regexp.MustCompile(`failpoint\.Hit\(([^)]*)\)`)
	require.NoError(t, filepath.WalkDir(repository(t), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, found := range hit.FindAllSubmatch(text, -1) {
			name := strings.Trim(string(found[1]), `"`)
			require.Equal(t, `"`+name+`"`, string(found[1]), "%s: the name of a point is no plain text", path)
			require.NotContains(t, points, name, "%s: the point stands elsewhere too", path)
			points = append(points, name)
		}
		return err
	}))
	require.NotEmpty(t, points)
	return points
}

// listing returns the snapshots that there are: kind, parent and labels by key.
func (m matrix) listing() map[string]string {
	m.t.Helper()
	found := map[string]string{}
	require.NoError(m.t, m.h.Walk(m.t.Context(), func(_ context.Context, i snapshots.Info) error {
		found[i.Name] = fmt.Sprint(i.Kind, " on ", i.Parent, " ", i.Labels)
		return nil
	}))
	return found
}

// step kills the daemon at each point of a step.
func (m matrix) step(t *testing.T, s crashStep) {
	t.Helper()
	m.kill()
	m.start()
	s.before(m)
	before := m.listing()
	m.clear()
	require.NoError(t, s.run(t.Context()), s.name)
	after, points := m.listing(), m.crashPoints(m.passed())
	s.finish(m)
	require.NotEqual(t, before, after, "%s changes nothing", s.name)
	require.NotEmpty(t, points, s.name)
	m.reset()
	for _, p := range points {
		s.before(m)
		err := m.dieIn(p.String(), s.run)
		if errors.Is(err, errNotReached) { // it does less when it remembers something
			s.finish(m)
			m.reset()
			m.kill()
			m.start()
			s.before(m)
			err = m.dieIn(p.String(), s.run)
		}
		if errors.Is(err, errNotReached) && p.nth > 1 { // two things were done in one, as deletions are
			s.finish(m)
			m.reset()
			continue
		}
		require.NoError(t, err, "%s, %s", s.name, p)
		m.recover(t, s, before, after)
		if t.Failed() {
			t.Fatalf("%s, %s", s.name, p)
		}
		m.reset()
	}
	m.requireNoLeak(t)
	t.Logf("%s: killed at %v", s.name, points)
}

// recover starts the daemon after a kill in a step.
func (m matrix) recover(t *testing.T, s crashStep, before, after map[string]string) {
	t.Helper()
	_, err := readStore(m.dir, m.root())
	require.NoError(t, err)
	m.start()
	now := m.listing()
	err = s.run(t.Context())
	switch {
	case fmt.Sprint(now) == fmt.Sprint(before):
		require.NoError(t, err, "the retry of what has not happened")
	case fmt.Sprint(now) == fmt.Sprint(after):
		require.True(t, err == nil || s.refused(err), "the retry of what has happened: %v", err)
	default:
		t.Errorf("there is %v: neither what was before, %v, nor what was to be, %v", now, before, after)
	}
	require.Equal(t, after, m.listing(), "after the retry")
	s.finish(m)
	for key, files := range s.shows {
		require.NoError(t, m.shows(key, files), key)
	}
}

// shows checks the files of a snapshot, each of which holds its name.
func (m matrix) shows(key string, files []string) error {
	ctx, want := m.t.Context(), map[string]string{}
	for _, name := range files {
		want[name] = name
	}
	info, err := m.h.Stat(ctx, key)
	if err != nil {
		return err
	}
	if info.Kind != snapshots.KindCommitted {
		mounts, err := m.h.Mounts(ctx, key)
		if err != nil {
			return err
		}
		return compare(ctx, mounts, want)
	}
	mounts, err := m.h.View(ctx, "look", key)
	if err != nil {
		return err
	}
	return errors.Join(compare(ctx, mounts, want), m.h.Remove(ctx, "look"), m.reach("settle.settled"))
}

// reset removes all but the snapshot base. What that has the daemon do in the
// background has ended, and nothing is left. Of volumes that is looked at once a
// step: it takes a few programs, and what is left of one stays.
func (m matrix) reset() {
	m.t.Helper()
	m.remove("base")
	if m.backend.name != thinExt4.name {
		m.requireNoLeak(m.t)
		return
	}
	require.NoError(m.t, poll(reachTimeout, func() error {
		k, err := readStore(m.dir, m.root())
		if err == nil && len(k.trash) > 0 {
			err = fmt.Errorf("the trash has %v", k.trash)
		}
		return errors.Join(err, m.checkDevices(k))
	}))
}

// remove removes all snapshots but those, the children first.
func (m matrix) remove(but ...string) {
	m.t.Helper()
	for again := true; again; {
		again = false
		parents := map[string]bool{}
		var all []snapshots.Info
		require.NoError(m.t, m.h.Walk(m.t.Context(), func(_ context.Context, i snapshots.Info) error {
			all, parents[i.Parent] = append(all, i), true
			return nil
		}))
		for _, i := range all {
			if parents[i.Name] || slices.Contains(but, i.Name) {
				continue
			}
			again = true
			m.clear()
			require.NoError(m.t, m.h.Remove(m.t.Context(), i.Name))
			// What it was upon may not be needed any more; a template has no name.
			if i.Kind == snapshots.KindView && i.Parent != "" || i.Parent == "" && m.backend.name == thinExt4.name {
				require.NoError(m.t, m.reach("settle.settled"))
			}
		}
	}
	require.NoError(m.t, m.h.Snapshotter.(snapshots.Cleaner).Cleanup(m.t.Context()))
}

// hold mounts a snapshot until the returned func is called.
func (m matrix) hold(mounts []mount.Mount) (dir string, release func()) {
	m.t.Helper()
	dir = mustTempDir(m.t)
	require.NoError(m.t, mount.All(mounts, dir))
	return dir, func() { require.NoError(m.t, mount.UnmountAll(dir, 0)) }
}
