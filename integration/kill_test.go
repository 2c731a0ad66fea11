package integration

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lamina-snapshotter/lamina/integration/guest"
	"github.com/lamina-snapshotter/lamina/integration/image"
)

// An unrest is how much goes on while a daemon is killed.
type unrest struct {
	kills    int
	restless int           // containers that start and stop all the time
	lasting  int           // containers that run from the first kill to the last
	patience time.Duration // until a container must run after a kill
}

// TestKilledDaemon kills the daemon again and again while containers start and
// stop. Each time the store must be sound as the kill left it, containers that
// run must not notice, and once the daemon is back so must be its service.
func TestKilledDaemon(t *testing.T) {
	requireRoot(t)
	for _, test := range []struct {
		containerd
		kills int
	}{{containerd2, tortured(8, 50)}, {containerdDebian, tortured(3, 10)}} {
		t.Run(test.name, func(t *testing.T) {
			n := startNode(t, test.containerd, union)
			if n.daemon == nil {
				t.Skip("kills Lamina, and another snapshotter is in its place")
			}
			killRepeatedly(t, n, unrest{kills: test.kills, restless: 20, lasting: 4, patience: 30 * time.Second})
		})
	}
}

// TestThinKilledDaemon does the same with volumes, fewer times: a guest is slow.
func TestThinKilledDaemon(t *testing.T) {
	guest.Require(t)
	killRepeatedly(t, startNode(t, containerd2, thinExt4), unrest{kills: tortured(4, 10), restless: 2, lasting: 2, patience: time.Minute})
}

func killRepeatedly(t *testing.T, n *node, u unrest) {
	t.Helper()
	n.importImage(n.snapshotter, "small.tar")
	for i := range u.lasting {
		n.ctr("run", "--detach", image.SmallName, lastingID(i), "sh", "-c", "while :; do echo beat >>/beats; sleep 0.05; done")
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))

	l := startLoad(t.Context(), n, u.restless)
	defer l.stop()
	beats := make([]int64, u.lasting)
	for i := range u.kills {
		time.Sleep(time.Duration(rng.IntN(1000)) * time.Millisecond)
		l.disturb()
		n.daemon.kill()
		records := n.daemon.check()
		n.daemon.restart()
		if err := poll(u.patience, func() error { return n.runOnce(fmt.Sprintf("probe-%d", i)) }); err != nil {
			t.Fatalf("after kill %d: %v", i, err)
		}
		l.calm()
		n.checkLasting(i%u.lasting, beats)
		if t.Failed() {
			t.Fatalf("after kill %d, with %d snapshots in the store", i, records)
		}
	}
	l.stop()
	t.Logf("%d kills, %d containers ran to their end, %d met a kill", u.kills, l.good.Load(), l.excused.Load())
	if good := l.good.Load(); good < int64(u.kills) {
		t.Errorf("only %d containers ran to their end", good)
	}
	for _, id := range n.words("containers", "ls", "--quiet") {
		n.removeContainer(id)
	}
	for _, row := range n.rows("snapshots", "ls") {
		if row[len(row)-1] == "Active" {
			n.ctr("snapshots", "delete", row[0])
		}
	}
	n.ctr("images", "delete", "--sync", image.SmallName)
	n.checkNothingLeft()
}

func lastingID(i int) string { return fmt.Sprintf("lasting-%d", i) }

// runOnce runs a container that writes and reads, and removes it.
func (n *node) runOnce(id string) error {
	_, err := n.tryCtr("run", "--rm", image.SmallName, id, "sh", "-ec",
		"echo "+id+" >/id; rm /lamina/mode; rm -r /lamina/names; test $(cat /id) = "+id)
	if err != nil {
		n.removeContainer(id)
	}
	return err
}

// checkLasting checks that all lasting containers run, and that one of them
// went on writing since it was last looked at.
func (n *node) checkLasting(i int, beats []int64) {
	n.t.Helper()
	running := map[string]string{}
	for _, row := range n.rows("tasks", "ls") {
		if strings.HasPrefix(row[0], "lasting-") && row[2] == "RUNNING" {
			running[row[0]] = row[1]
		}
	}
	if len(running) != len(beats) {
		n.t.Fatalf("%d of %d containers still run", len(running), len(beats))
	}
	// As the container sees it; what an exec prints, containerd 1.6 may lose.
	st, err := os.Stat(filepath.Join("/proc", running[lastingID(i)], "root/beats"))
	if err != nil {
		n.t.Fatal(err)
	}
	if st.Size() <= beats[i] {
		n.t.Errorf("container %s has written %d bytes, before it was %d", lastingID(i), st.Size(), beats[i])
	}
	beats[i] = st.Size()
}

// A load is containers that start and stop until it is stopped.
type load struct {
	n      *node
	cancel context.CancelFunc
	wg     sync.WaitGroup
	// phase counts the changes between calm, when it is even and every
	// container must run, and disturbed, when the daemon is or was just away.
	phase   atomic.Int64
	good    atomic.Int64
	excused atomic.Int64
}

func startLoad(ctx context.Context, n *node, restless int) *load {
	ctx, cancel := context.WithCancel(ctx)
	l := &load{n: n, cancel: cancel}
	for i := range restless {
		l.wg.Go(func() {
			for round := 0; ctx.Err() == nil; round++ {
				l.runOne(fmt.Sprintf("restless-%d-%d", i, round))
			}
		})
	}
	return l
}

func (l *load) runOne(id string) {
	before := l.phase.Load()
	err := l.n.runOnce(id)
	switch after := l.phase.Load(); {
	case err == nil:
		l.good.Add(1)
	case before%2 == 1 || before != after:
		l.excused.Add(1)
		time.Sleep(50 * time.Millisecond) // it fails at once while the daemon is away
	default:
		l.n.t.Errorf("with the daemon there all the time: %v", err)
		l.cancel()
	}
}

func (l *load) disturb() { l.phase.Add(1) }
func (l *load) calm()    { l.phase.Add(1) }

// stop waits for the containers under way.
func (l *load) stop() {
	l.cancel()
	l.wg.Wait()
}
