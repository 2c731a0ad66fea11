package metadata

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"
)

var killsFlag = flag.Int("kills", 120, "kills of the kill -9 test")

const (
	killWriters = 6
	killStore   = "LAMINA_TEST_KILL_STORE"
	killRound   = "LAMINA_TEST_KILL_ROUND"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(killStore); path != "" {
		writeUntilKilled(path, os.Getenv(killRound), os.Stdout)
	}
	os.Exit(m.Run())
}

// TestKill has a child process write from several goroutines and say what was acknowledged, kills it at a random moment,
// and opens the store: all that was acknowledged is there, at most one operation more of each writer, and Check is clean.
func TestKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lamina.db")
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 2))
	t.Logf("%d kills, seed %d", *killsFlag, seed)
	acknowledged := 0
	for round := range *killsFlag {
		acks := runAndKill(t, path, fmt.Sprint(round), time.Duration(r.IntN(40_000))*time.Microsecond)
		s := mustOpen(t, path)
		tCheck(t, s)
		for w := range killWriters {
			tAcknowledged(t, s, fmt.Sprint(round), w, acks[w])
			acknowledged += acks[w]
		}
		require.NoError(t, s.Close())
		if t.Failed() {
			t.Fatalf("after kill %d", round)
		}
	}
	t.Logf("%d operations were acknowledged", acknowledged)
	require.Greater(t, acknowledged, *killsFlag, "the child hardly wrote")
}

// runAndKill returns how many operations each writer of the child had acknowledged.
func runAndKill(t *testing.T, path, round string, after time.Duration) (acks [killWriters]int) {
	t.Helper()
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), killStore+"="+path, killRound+"="+round)
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, child.Start())
	lines := bufio.NewScanner(out)
	require.True(t, lines.Scan(), "the child said nothing")
	require.Equal(t, "open", lines.Text())
	time.AfterFunc(after, func() { _ = child.Process.Kill() })
	for lines.Scan() {
		var w, n int
		if _, err := fmt.Sscanf(lines.Text(), "%d %d.", &w, &n); err == nil {
			acks[w] = n
		}
	}
	require.ErrorContains(t, child.Wait(), "killed")
	return acks
}

// Each writer does three operations on one key after the other: create, commit, and remove, but for every eighth key,
// which stays.
const killSteps = 3

func killKey(round string, w, i int) string { return fmt.Sprintf("%s-%d-%d", round, w, i) }
func killStays(i int) bool                  { return i%8 == 0 }

func writeUntilKilled(path, round string, out io.Writer) {
	s, err := Open(path, Options{})
	if err != nil {
		panic(err)
	}
	var mu sync.Mutex
	say := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		_, _ = fmt.Fprintf(out, format+"\n", args...)
	}
	say("open")
	for w := range killWriters {
		go func() {
			for n := 0; ; n++ {
				if err := killStep(s, killKey(round, w, n/killSteps), n); err != nil {
					panic(err)
				}
				say("%d %d.", w, n+1)
			}
		}()
	}
	select {}
}

func killStep(s *Store, key string, n int) error {
	ctx := context.Background()
	switch n % killSteps {
	case 0:
		return s.Create(ctx, Snapshot{
			ID: s.ReserveID(), Name: "n", Key: key, Kind: snapshots.KindActive, Placement: Placement{Medium: Directory},
			Labels: map[string]string{snapshots.LabelSnapshotRef: key},
		})
	case 1:
		return s.Commit(ctx, "n", key+"-c", key, CommitOptions{})
	}
	if killStays(n / killSteps) {
		return nil
	}
	if _, err := s.Remove(ctx, "n", key+"-c"); err != nil {
		return err
	}
	if n%2 == 0 {
		return nil
	}
	trash, err := s.Trash(ctx)
	if err != nil {
		return err
	}
	return s.Forget(ctx, trash...)
}

// tAcknowledged checks the keys of one writer against the number of its acknowledged operations.
func tAcknowledged(t *testing.T, s *Store, round string, w, acked int) {
	t.Helper()
	for i := 0; i <= acked/killSteps+1; i++ {
		key := killKey(round, w, i)
		_, active := s.Get("n", key)
		_, committed := s.Get("n", key+"-c")
		seen := map[[2]bool]int{{false, false}: 0, {true, false}: 1, {false, true}: 2}[[2]bool{active == nil, committed == nil}]
		done := min(max(acked-i*killSteps, 0), killSteps)
		var allowed []int
		for d := done; d <= min(done+1, killSteps); d++ {
			if d > done && acked != i*killSteps+done {
				continue // not the operation that was under way
			}
			state := d
			if d == killSteps {
				state = 0
				if killStays(i) {
					state = 2
				}
			}
			allowed = append(allowed, state)
		}
		require.Contains(t, allowed, seen, "key %s, %d acknowledged", key, acked)
	}
}
