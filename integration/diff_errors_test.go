package integration

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/rootfs"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/integration/guest"
)

// diffTimeout bounds a comparison that may hang.
const diffTimeout = 30 * time.Second

// plainly compares without a compression, which is quick and takes room.
var plainly = diff.WithMediaType(ocispec.MediaTypeImageLayer)

// TestDiffWhileWritten compares a container that goes on writing. What it tells is whole, or that it could not be read.
func TestDiffWhileWritten(t *testing.T) {
	requireRoot(t)
	c := startComparison(t, union)
	require.Equal(t, 2, c.whileWritten(math.MaxInt))
	c.refuseHalf()
	c.requireLaminaAlone()
	c.requireNothingLeft()
}

// TestThinDiffErrors does what these tests do with volumes. A volume that is written to is compared as it was at one moment.
func TestThinDiffErrors(t *testing.T) {
	guest.Require(t)
	c := startComparison(t, thinExt4)
	require.Zero(t, c.whileWritten(3), "a comparison saw what was written meanwhile")
	c.interrupt()
	c.requireLaminaAlone()
	c.requireNothingLeft()
	c.daemon.stop()
	c.daemon.backend.check(t, c.daemon.root())
}

// whileWritten compares two containers, whose files grow and vanish, each until it is told that one could not be read, so many times
// at most. It returns how many containers could not.
func (c *comparison) whileWritten(most int) (told int) {
	c.t.Helper()
	c.prepare("base", "")
	require.NoError(c.t, c.Commit(c.ctx, "empty", "base"))
	for name, write := range map[string]func(context.Context, string) error{"grows": grow, "vanishes": vanish} {
		within(c.t, c.prepare(name, "empty"), func(dir string) {
			defer c.during(func(ctx context.Context) error { return write(ctx, dir) })()
			require.NoError(c.t, poll(diffTimeout, func() error {
				entries, err := os.ReadDir(dir)
				if err == nil && len(entries) == 0 {
					err = errors.New("nothing is written")
				}
				return err
			}))
			deadline := time.Now().Add(diffTimeout)
			for range most {
				_, err := c.diff(c.ours, name, plainly)
				if err != nil {
					require.ErrorIs(c.t, err, errdefs.ErrAborted)
					require.ErrorContains(c.t, err, name, "it names the file")
					c.t.Log(err)
					told++
					break
				}
				require.True(c.t, time.Now().Before(deadline), "it is never told")
			}
		})
		require.NoError(c.t, c.Remove(c.ctx, name))
	}
	return told
}

// during runs f until the returned func is called, which waits for its end.
func (c *comparison) during(f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(c.ctx)
	ended := make(chan error, 1)
	go func() { ended <- f(ctx) }()
	return func() {
		c.t.Helper()
		cancel()
		require.NoError(c.t, <-ended)
	}
}

// grow has a file grow all the time, and be cut short.
func grow(ctx context.Context, dir string) error {
	f, err := os.Create(filepath.Join(dir, "grows"))
	if err != nil {
		return err
	}
	for i := 0; err == nil && ctx.Err() == nil; i++ {
		if i%64 == 0 {
			err = f.Truncate(4 << 20)
		}
		_, writeErr := f.WriteAt(make([]byte, 64<<10), int64(4<<20+i%64*(64<<10)))
		err = errors.Join(err, writeErr)
	}
	return errors.Join(err, f.Close())
}

// vanish makes files and removes them, all the time.
func vanish(ctx context.Context, dir string) (err error) {
	const files = 500
	name := func(i int) string { return filepath.Join(dir, fmt.Sprint("vanishes-", i%files)) }
	for i := 0; err == nil && ctx.Err() == nil; i++ {
		err = os.WriteFile(name(i), make([]byte, 10_000), 0o600)
		if i >= files/2 {
			err = errors.Join(err, os.RemoveAll(name(i+files/2)))
		}
	}
	return err
}

// refuseHalf asks for what cannot be: a snapshot that is not there, a kind of layer that nobody writes.
func (c *comparison) refuseHalf() {
	c.t.Helper()
	_, err := c.diff(c.ours, "not-there")
	require.ErrorIs(c.t, err, errdefs.ErrNotFound)
	c.prepare("whatever", "empty")
	_, err = c.diff(c.ours, "whatever", diff.WithMediaType("application/x-not-a-layer"))
	require.Error(c.t, err)
	c.t.Log(err)
}

// TestDiffInterrupted cancels a comparison, removes what is compared, and kills the daemon, each in the midst.
func TestDiffInterrupted(t *testing.T) {
	requireRoot(t)
	c := startComparison(t, union)
	c.prepare("base", "")
	require.NoError(t, c.Commit(c.ctx, "empty", "base"))
	c.interrupt()
	c.requireLaminaAlone()
	c.requireNothingLeft()
	c.daemon.stop()
	c.daemon.backend.check(t, c.daemon.root())
}

// interrupt ends comparisons that would go on for minutes.
func (c *comparison) interrupt() {
	c.t.Helper()
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	c.prepareEndless("cancelled")
	ended := c.startDiff(ctx, "cancelled")
	cancel()
	require.ErrorIs(c.t, c.await(ended), context.Canceled)
	c.requireSaid("class=Canceled")
	c.requireUndone()
	c.interruptRemoved()
	c.interruptKilled()
}

// interruptRemoved removes what is compared. A directory goes with what is in it; of a volume a copy is compared, which stays.
func (c *comparison) interruptRemoved() {
	c.t.Helper()
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	want, end := context.Canceled, func() error { cancel(); return nil }
	mounts := c.prepareEndless("removed")
	if upper := optionOf(mounts[0], "upperdir"); upper != "" {
		hole, err := os.OpenFile(filepath.Join(upper, "hole"), os.O_RDWR, 0)
		require.NoError(c.t, err)
		defer hole.Close()
		want, end = errdefs.ErrAborted, func() error { return hole.Truncate(0) }
	}
	ended := c.startDiff(ctx, "removed")
	require.NoError(c.t, c.Remove(c.ctx, "removed"))
	require.NoError(c.t, end())
	require.ErrorIs(c.t, c.await(ended), want)
	c.requireUndone()
}

func optionOf(m mount.Mount, name string) string {
	for _, o := range m.Options {
		if value, ok := strings.CutPrefix(o, name+"="); ok {
			return value
		}
	}
	return ""
}

// interruptKilled kills the daemon. As long as there is none, containerd asks nobody else; afterwards it is asked again.
func (c *comparison) interruptKilled() {
	c.t.Helper()
	c.prepareEndless("killed")
	ended := c.startDiff(c.ctx, "killed")
	c.daemon.kill()
	require.ErrorIs(c.t, c.await(ended), errdefs.ErrUnavailable)
	_, err := c.ours.differ().Compare(c.ctx, nil, nil)
	require.ErrorIs(c.t, err, errdefs.ErrUnavailable)
	c.daemon.restart()
	require.NoError(c.t, poll(readyTimeout, func() error { // containerd connects again after a while
		_, err := c.diff(c.ours, "empty")
		return err
	}))
	c.forgetLeases()
}

// prepareEndless makes a container that takes minutes to compare: a file of nothing but a hole, which takes no room, and small ones
// behind it.
func (c *comparison) prepareEndless(key string) []mount.Mount {
	c.t.Helper()
	mounts := c.prepare(key, "empty")
	within(c.t, mounts, func(dir string) {
		require.NoError(c.t, os.WriteFile(filepath.Join(dir, "hole"), nil, 0o600))
		require.NoError(c.t, os.Truncate(filepath.Join(dir, "hole"), 100<<30))
		for i := range 100 {
			require.NoError(c.t, os.WriteFile(filepath.Join(dir, fmt.Sprint("small-", i)), []byte("small"), 0o600))
		}
	})
	return mounts
}

// startDiff starts a comparison and returns when it writes.
func (c *comparison) startDiff(ctx context.Context, key string) <-chan error {
	c.t.Helper()
	ended := make(chan error, 1)
	go func() {
		_, err := rootfs.CreateDiff(ctx, key, c.Snapshotter, c.ours.differ())
		ended <- err
	}()
	require.NoError(c.t, poll(diffTimeout, func() error {
		if len(ended) == 0 && c.noIngests() == nil {
			return errors.New("nothing is written")
		}
		return nil
	}))
	require.Empty(c.t, ended, "the comparison has ended")
	return ended
}

func (c *comparison) await(ended <-chan error) error {
	c.t.Helper()
	select {
	case err := <-ended:
		c.t.Log(err)
		return err
	case <-time.After(diffTimeout):
		c.t.Fatal("the comparison does not end")
		return nil
	}
}

// TestDiffFullStore compares what is larger than the disk of containerd's content store.
func TestDiffFullStore(t *testing.T) {
	requireRoot(t)
	n := &node{t: t, dir: mustTempDir(t), snapshotter: "lamina"}
	n.daemon = startDaemonWith(t, filepath.Join(n.dir, "lamina"), union, union.toml()+n.contentStore())
	disk := mustTempDir(t)
	require.NoError(t, unix.Mount("tmpfs", disk, "tmpfs", 0, "size=8m"))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(disk, 0)) }) // after the containerd on it
	require.NoError(t, os.Symlink(disk, filepath.Join(n.dir, "root")))
	n.startBeside(containerd2)
	c := newComparison(n)
	within(t, c.prepare("large", ""), func(dir string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "large"), make([]byte, 16<<20), 0o600))
	})
	_, err := c.diff(c.ours, "large", plainly)
	require.ErrorContains(t, err, "no space left on device")
	t.Log(err)
	require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
	c.requireSaid("call failed", "class=ResourceExhausted", "content store is full")
	c.requireUndone()
	_, err = c.diff(c.ours, "large") // small when it is compressed
	require.NoError(t, err)
	c.requireLaminaAlone()
	c.requireNothingLeft()
}
