package integration

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/doctor"
	"github.com/lamina-snapshotter/lamina/integration/guest"
	"github.com/lamina-snapshotter/lamina/metadata"
)

// TestDoctorOfBusyDaemon looks again and again at a Lamina that many clients use:
// what they do for a moment is not found, and what is wrong is.
func TestDoctorOfBusyDaemon(t *testing.T) {
	requireRoot(t)
	busy(t, union, 200, func(_ *lamina.Host, root string) {
		require.NoError(t, os.Mkdir(filepath.Join(root, "union", "987654"), 0o700))
	})
}

// TestThinDoctorOfBusyDaemon does the same with volumes.
func TestThinDoctorOfBusyDaemon(t *testing.T) {
	guest.Require(t)
	b := thinExt4
	b.thin.DataSize, b.thin.VolumeSize = 4<<30, 256<<20
	busy(t, b, 25, func(_ *lamina.Host, root string) {
		p := thinPatient{patient{t: t, root: root}, b}
		for _, v := range volumesOf(root) {
			if filepath.Ext(v.name) == "" && v.name[len(v.name)-5:] == "-pool" {
				p.message(v.name[:len(v.name)-5], "create_thin 987654")
			}
		}
	})
}

// busy has many clients at work, each for so many steps, while the doctor looks;
// then makes a surplus content, which the doctor has to find among them.
func busy(t *testing.T, b backend, steps int, surplus func(*lamina.Host, string)) {
	t.Helper()
	root := filepath.Join(mustTempDir(t), "root")
	opened, err := lamina.Open(t.Context(), b.config(root))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, opened.Close()) })
	sn, err := opened.Snapshotter(lamina.DefaultName)
	require.NoError(t, err)
	h := &host{sn, t}
	h.layer("base", "", []byte("base"))
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var wg sync.WaitGroup
	var done atomic.Int64
	for i := range stressClients {
		c := &stressClient{sn: h, id: i, rng: rand.New(rand.NewPCG(seed, uint64(i))), model: map[string]*expected{}}
		wg.Go(func() {
			for step := range steps {
				if err := c.step(t.Context(), step); err != nil {
					t.Errorf("client %d, step %d: %v", c.id, step, err)
					return
				}
				done.Add(1)
			}
		})
	}
	looks := 0
	var found []doctor.Finding
	look := func() {
		found = nil
		require.NoError(t, opened.Examine(t.Context(), func(f doctor.Finding) { found = append(found, f) }))
		looks++
	}
	total := int64(stressClients * steps)
	for done.Load() < total/2 && !t.Failed() {
		look()
		if len(found) > 0 {
			t.Errorf("look %d: %v", looks, found)
		}
	}
	surplus(opened, root)
	look()
	if len(found) != 1 || found[0].Code != doctor.ContentSurplus {
		t.Errorf("with a surplus content: %v", found)
	}
	for done.Load() < total && !t.Failed() {
		look()
		if len(found) != 1 || found[0].Code != doctor.ContentSurplus {
			t.Errorf("look %d, with a surplus content: %v", looks, found)
		}
	}
	wg.Wait()
	t.Logf("%d looks beside %d steps of %d clients", looks, total, stressClients)
	require.GreaterOrEqual(t, looks, 2) // a guest is slow
	require.NoError(t, opened.Close())
	config := b.config(root)
	require.NoError(t, lamina.Repair(t.Context(), config, doctor.Repair{
		Say: func(string) {}, Ask: func(string) (bool, error) { return true, nil },
	}))
	doctored(t, b, root)
}

// TestDoctorSpeed looks at ten thousand snapshots.
func TestDoctorSpeed(t *testing.T) {
	requireRoot(t)
	const many = 10_000
	root := filepath.Join(mustTempDir(t), "root")
	opened, err := lamina.Open(t.Context(), union.config(root))
	require.NoError(t, err)
	require.NoError(t, opened.Close())
	p := patient{t: t, root: root}
	p.withStore(metadata.Options{}, func(s *metadata.Store) error {
		var wg sync.WaitGroup
		for i := range many {
			wg.Go(func() {
				id := s.ReserveID()
				for _, name := range []string{"fs", "work"} {
					if err := os.MkdirAll(filepath.Join(root, "union", fmt.Sprint(id), name), 0o755); err != nil {
						t.Error(err)
					}
				}
				if err := s.Create(t.Context(), metadata.Snapshot{
					ID: id, Name: lamina.DefaultName, Key: fmt.Sprint(i), Kind: snapshots.KindActive,
					Placement: metadata.Placement{Medium: metadata.Directory},
				}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		return nil
	})
	begun := time.Now()
	doctored(t, union, root)
	t.Logf("%d snapshots in %v", many, time.Since(begun))
	require.Less(t, time.Since(begun), 10*time.Second)
}
