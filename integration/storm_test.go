package integration

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/integration/guest"
)

const (
	stormClients = 16
	// stormTimeout bounds one call, and the recovery after a kill.
	stormTimeout = time.Minute
	// A daemon lives so long, in milliseconds, from when all has been checked.
	stormLifeMin, stormLifeMax = 50, 300
)

// TestStorm kills the daemon at random moments while 16 clients prepare, write,
// commit, view and remove. After each restart all is there that was acknowledged,
// with parent, kind, labels and content; what was under way has happened or has
// not. At the end nothing is left. With LAMINA_TORTURE=1 there are five times as
// many kills.
func TestStorm(t *testing.T) {
	requireRoot(t)
	storm(t, union, 76)
}

// TestThinStorm does the same with volumes, fewer times: a guest is slow.
func TestThinStorm(t *testing.T) {
	guest.Require(t)
	t.Run("ext4", func(t *testing.T) { storm(t, thinExt4, 10) })
	t.Run("xfs", func(t *testing.T) { storm(t, thinXFS, 6) })
}

func storm(t *testing.T, b backend, kills int) {
	t.Helper()
	if torture() {
		kills *= 5
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	began := time.Now()
	s := &stormRun{t: t, daemon: startDaemon(t, mustTempDir(t), b), rng: rand.New(rand.NewPCG(seed, 0))}
	s.client(lamina.DefaultName).layer("base", "", []byte("base"))
	for i := range stormClients {
		c := newStormClient(s, i, rand.New(rand.NewPCG(seed, uint64(i+1))))
		s.clients = append(s.clients, c)
		s.ended.Go(c.live)
	}
	for s.kills < kills && !t.Failed() {
		s.life(s.randomLife(), false)
	}
	s.life(0, true)
	for _, c := range s.clients {
		close(c.lives)
	}
	s.ended.Wait()
	if t.Failed() {
		t.FailNow()
	}
	h := s.client(lamina.DefaultName)
	h.remove("base")
	s.requireNoLeak(t)
	s.stop()
	require.Zero(t, s.check())
	b.check(t, s.root())
	t.Logf("storm: %d kills, %d of them of a start; %d steps acknowledged; of %d cut off %d had happened; %d contents compared; %v",
		s.kills, s.startKills, s.acknowledged.Load(), s.cut.Load(), s.happened.Load(), s.compared.Load(), time.Since(began).Round(time.Second))
	require.Greater(t, s.acknowledged.Load(), int64(kills), "the clients hardly worked")
	require.Positive(t, s.cut.Load(), "no kill hit a call")
}

// A stormRun is a daemon, its clients, and what happened to them.
type stormRun struct {
	t *testing.T
	*daemon
	rng     *rand.Rand
	clients []*stormClient
	ended   sync.WaitGroup

	kills, startKills                     int
	acknowledged, cut, happened, compared atomic.Int64
}

func (s *stormRun) randomLife() time.Duration {
	return time.Duration(stormLifeMin+s.rng.IntN(stormLifeMax-stormLifeMin)) * time.Millisecond
}

// A life is the time from a start of the daemon to its death.
type life struct {
	sn       snapshots.Snapshotter
	found    map[string]snapshots.Info // what there was at its begin
	verified chan error                // from each client, once
	last     bool                      // remove everything, and then it is over
	dead     chan struct{}             // closed at its end
}

// life has the clients check what there is and then work, kills the daemon after
// that time, and starts it again. The last one ends by itself.
func (s *stormRun) life(long time.Duration, last bool) {
	s.t.Helper()
	sn, disconnect, err := s.connect(lamina.DefaultName)
	require.NoError(s.t, err)
	defer func() { require.NoError(s.t, disconnect()) }()
	l := &life{sn: sn, verified: make(chan error, stormClients), dead: make(chan struct{}), last: last}
	l.found = s.list(sn)
	deadline := time.After(stormTimeout)
	for _, c := range s.clients {
		select {
		case c.lives <- l:
		case <-deadline:
			s.t.Fatalf("after kill %d: client %s hangs\n%s", s.kills, c.name, s.tail())
		}
	}
	for range s.clients {
		select {
		case err := <-l.verified:
			require.NoError(s.t, err, "after kill %d", s.kills)
		case <-deadline:
			s.t.Fatalf("after kill %d: not all is there within %s\n%s", s.kills, stormTimeout, s.tail())
		}
	}
	if last {
		return
	}
	time.Sleep(long) // a random moment
	s.kill()
	s.kills++
	close(l.dead)
	_, err = readStore(s.dir, s.root())
	require.NoError(s.t, err)
	if s.rng.IntN(4) == 0 { // die while starting, too
		s.process = s.launch(s.t)
		time.Sleep(time.Duration(s.rng.IntN(100)) * time.Millisecond)
		s.kill()
		s.kills++
		s.startKills++
	}
	// Not later: who reads from a volume that was suspended at the kill waits for it.
	s.restart()
}

// list returns all snapshots, each of which is a client's or the one below all.
func (s *stormRun) list(sn snapshots.Snapshotter) map[string]snapshots.Info {
	s.t.Helper()
	found := map[string]snapshots.Info{}
	ctx, cancel := context.WithTimeout(s.t.Context(), stormTimeout)
	defer cancel()
	require.NoError(s.t, sn.Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		if i.Name != "base" {
			found[i.Name] = i
		}
		return nil
	}))
	return found
}

// of returns the part of a client.
func (l *life) of(client string) map[string]snapshots.Info {
	mine := map[string]snapshots.Info{}
	for key, i := range l.found {
		if strings.HasPrefix(key, client+"-") {
			mine[key] = i
		}
	}
	return mine
}

// isOver reports whether the daemon is dead, or is just dying: then err, of a
// call, says so.
func (l *life) isOver(err error) bool {
	wait := time.Duration(0)
	if err != nil {
		wait = stormTimeout
	}
	select {
	case <-l.dead:
		return true
	default:
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-l.dead:
		return true
	case <-timer.C:
		return false
	}
}

func clientName(i int) string { return fmt.Sprintf("c%02d", i) }
