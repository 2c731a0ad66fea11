package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina"
)

// How long a daemon may take to do in the background what a step began, or to
// come to the point where it dies.
const reachTimeout = 20 * time.Second

// dieTimeout is how long a SIGKILL may take.
const dieTimeout = 500 * time.Millisecond

var errNotReached = errors.New("the daemon did not come by the point")

// A rig is a daemon that dies where it is told to, and starts again.
type rig struct {
	t *testing.T
	*daemon
	h *host
	// disconnect ends h: a client of a daemon that died would try to reach it for ever.
	disconnect func()
	target     string         // the file that says where it dies
	hits       string         // the file with the points that it came by
	died       map[string]int // how often it did, by the point
	kills      int
	began      int // starts to the end
	startTime  time.Duration
}

func newRig(t *testing.T, b backend, toml string) *rig {
	t.Helper()
	r := &rig{t: t, died: map[string]int{}, disconnect: func() {}}
	t.Cleanup(func() { r.disconnect() })
	r.place(newDaemon(t, mustTempDir(t), b, toml))
	return r
}

// place gives the rig a daemon that was not started yet.
func (r *rig) place(d *daemon) {
	r.daemon = d
	r.target, r.hits = filepath.Join(d.dir, "target"), filepath.Join(d.dir, "hits")
	d.build = buildMortal
	d.env = []string{"LAMINA_FAILPOINT=@" + r.target, "LAMINA_FAILPOINT_LOG=" + r.hits}
	r.clear()
}

// point is a point and which of its hits, "reap.deleted:2".
func point(name string, n int) string { return fmt.Sprintf("%s:%d", name, n) }

func (r *rig) arm(point string) {
	r.t.Helper()
	require.NoError(r.t, os.WriteFile(r.target, []byte(point), 0o600))
}

func (r *rig) disarm() {
	r.t.Helper()
	if err := os.Remove(r.target); !errors.Is(err, os.ErrNotExist) {
		require.NoError(r.t, err)
	}
}

// clear forgets the hits up to now.
func (r *rig) clear() {
	r.t.Helper()
	require.NoError(r.t, os.WriteFile(r.hits, nil, 0o600))
}

// passed returns the points that the daemon has come by since clear, in order.
func (r *rig) passed() []string {
	r.t.Helper()
	text, err := os.ReadFile(r.hits)
	require.NoError(r.t, err)
	return strings.Fields(string(text))
}

// start starts the daemon, which does not die, and waits until all is done that a
// start does in the background.
func (r *rig) start() {
	r.t.Helper()
	r.disarm()
	r.clear()
	began := time.Now()
	r.process = r.serve(r.t)
	r.disconnect()
	sn, disconnect, err := r.connect(lamina.DefaultName)
	require.NoError(r.t, err)
	r.h, r.disconnect = &host{sn, r.t}, sync.OnceFunc(func() { require.NoError(r.t, disconnect()) })
	require.NoError(r.t, r.started())
	r.began++
	r.startTime += time.Since(began)
}

func (r *rig) started() error {
	rested := error(nil)
	if r.backend.name == union.name {
		rested = r.reach("spare.rested")
	}
	return errors.Join(rested, r.reach("start.settled"), r.h.Snapshotter.(snapshots.Cleaner).Cleanup(r.t.Context()))
}

// reach waits until the daemon comes by a point, or dies.
func (r *rig) reach(name string) error {
	deadline := time.Now().Add(reachTimeout)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		dead := r.ended() // before the look, as it may come by the point and die
		text, err := os.ReadFile(r.hits)
		switch {
		case err != nil:
			return err
		case strings.Contains("\n"+string(text), "\n"+name+"\n"):
			return nil
		case dead:
			return fmt.Errorf("the daemon ended before it came by %s", name)
		case time.Now().After(deadline):
			return fmt.Errorf("the daemon does not come by %s; it came by:\n%s", name, text)
		}
		<-tick.C
	}
}

// dies waits for the death of the daemon, which has been told where.
func (r *rig) dies(point string) error {
	select {
	case <-r.done:
	case <-time.After(reachTimeout):
		return fmt.Errorf("the daemon does not come by %s; it came by %v", point, r.passed())
	}
	exit := (*exec.ExitError)(nil)
	if !errors.As(r.err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		return fmt.Errorf("the daemon ended before it came by %s: %w\n%s", point, r.err, r.tail())
	}
	r.disarm()
	r.kills++
	name, _, _ := strings.Cut(point, ":")
	r.died[name]++
	return nil
}

// dieStarting starts the daemon, which dies on the way, or a moment after it.
func (r *rig) dieStarting(point string) error {
	r.arm(point)
	r.process = r.launch(r.t)
	return r.dies(point)
}

// dieIn has the daemon die while fn calls it. fn may return an error: the call
// was cut off. Once it has returned without one, all is done, and errNotReached
// says that the point was not come by.
func (r *rig) dieIn(point string, fn func(context.Context) error) error {
	r.arm(point)
	if called := fn(r.t.Context()); called != nil {
		if err := r.dies(point); err != nil {
			return errors.Join(err, called)
		}
		return nil
	}
	select {
	case <-r.done:
		return r.dies(point)
	case <-time.After(dieTimeout):
		r.disarm()
		return errNotReached
	}
}

// A crashPoint is a hit of a point in a step.
type crashPoint struct {
	name string
	nth  int
}

func (c crashPoint) String() string { return point(c.name, c.nth) }

// common points are come by in nearly every step, and what they leave is the same
// in each: a device that is half made, a write of the store that has happened or
// has not. The tests die there a few times, with LAMINA_TORTURE=1 in each step.
const (
	common      = "thin.device-created thin.device-loaded thin.device-resumed thin.device-removed store.commit store.written store.committed"
	commonTimes = 6
)

// unbidden begins the points that the daemon comes by when nobody calls: in a
// step they may be come by or not.
const unbidden = "spare."

// crashPoints returns where to die, of all hits of a step: for each point at the
// first hit and the last, with LAMINA_TORTURE=1 also at the second.
func (r *rig) crashPoints(passed []string) (points []crashPoint) {
	return r.crashPointsOf(slices.DeleteFunc(passed, func(name string) bool { return strings.HasPrefix(name, unbidden) }))
}

// crashPointsOf is crashPoints of a step with those too.
func (r *rig) crashPointsOf(passed []string) (points []crashPoint) {
	total := map[string]int{}
	for _, name := range passed {
		total[name]++
	}
	count := map[string]int{}
	for _, name := range passed {
		count[name]++
		n := count[name]
		often := r.backend.name == thinExt4.name && !torture() &&
			slices.Contains(strings.Fields(common), name) && r.died[name] >= commonTimes
		if !often && (n == 1 || n == total[name] || n == 2 && torture()) {
			points = append(points, crashPoint{name, n})
		}
	}
	return points
}

// torture reports whether the tests are to take their time.
func torture() bool { return os.Getenv("LAMINA_TORTURE") == "1" }
