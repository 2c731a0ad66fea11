package metadata

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sync/errgroup"
)

// mappedPages returns how many KiB of a file the process has mapped and in its resident set.
func mappedPages(t *testing.T, path string) (kib int) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/smaps")
	require.NoError(t, err)
	found := false
	for line := range strings.Lines(string(text)) {
		switch fields := strings.Fields(line); {
		case strings.Contains(fields[0], "-"):
			found = fields[len(fields)-1] == path
		case found && fields[0] == "Rss:":
			var n int
			_, err := fmt.Sscan(fields[1], &n)
			require.NoError(t, err)
			kib += n
		}
	}
	return kib
}

func TestGiveBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lamina.db")
	s := mustOpen(t, path)
	for i := range 1000 {
		require.NoError(t, s.Create(t.Context(), Snapshot{ID: s.ReserveID(), Name: "n", Key: fmt.Sprint(i), Kind: snapshots.KindActive}))
	}
	read := func() (n int) {
		require.NoError(t, s.Walk(t.Context(), "n", func(Snapshot) error { n++; return nil }))
		return n
	}
	require.Equal(t, 1000, read())
	before := mappedPages(t, path)
	require.NoError(t, s.GiveBack())
	require.Less(t, mappedPages(t, path), before/2)
	require.Equal(t, 1000, read())
	require.NoError(t, s.Close())
	require.Error(t, s.GiveBack())
}

// A Walk of a large store keeps a part of it in memory.
func TestWalkGivesBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lamina.db")
	s := mustOpen(t, path)
	const snapshotCount = 6000
	labels := map[string]string{"containerd.io/text": strings.Repeat("x", 1000)}
	var writers errgroup.Group
	writers.SetLimit(256) // they share commits
	for i := range snapshotCount {
		writers.Go(func() error {
			return s.Create(t.Context(), Snapshot{ID: s.ReserveID(), Name: "n", Key: fmt.Sprint(i), Kind: snapshots.KindActive, Labels: labels})
		})
	}
	require.NoError(t, writers.Wait())
	require.NoError(t, s.view(func(btx *bolt.Tx) error {
		return btx.Bucket(bucketRecords).ForEach(func(k, raw []byte) error {
			_, err := decodeSnapshot(ID(binary.BigEndian.Uint64(k)), raw)
			return err
		})
	}))
	all := mappedPages(t, path)
	require.NoError(t, s.GiveBack())
	shown, most := 0, 0
	require.NoError(t, s.Walk(t.Context(), "n", func(Snapshot) error {
		if shown++; shown%100 == 0 {
			most = max(most, mappedPages(t, path))
		}
		return nil
	}))
	require.Equal(t, snapshotCount, shown)
	t.Logf("%d of %d KiB", most, all)
	require.Less(t, most, all*3/4, "KiB, of %d that are mapped when all has been read: the kernel maps more around what is read", all)
}
