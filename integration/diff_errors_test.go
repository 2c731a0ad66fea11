package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/diff"
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
	told := c.whileWritten(func(told map[string]int) bool { return told["grows"] > 0 && told["vanishes"] > 0 })
	require.NotZero(t, told["grows"])
	require.NotZero(t, told["vanishes"])
	c.refuseHalf()
	c.requireLaminaAlone()
	c.requireNothingLeft()
}

// TestThinDiffErrors does what these tests do with volumes. A volume that is written to is compared as it was at one moment.
func TestThinDiffErrors(t *testing.T) {
	guest.Require(t)
	c := startComparison(t, thinExt4)
	compared := 0
	told := c.whileWritten(func(map[string]int) bool { compared++; return compared > 5 })
	require.Empty(t, told, "a comparison saw what was written meanwhile")
	c.interrupt()
	c.requireLaminaAlone()
	c.requireNothingLeft()
	c.daemon.stop()
	c.daemon.backend.check(t, c.daemon.root())
}

// whileWritten compares a container, whose files grow and vanish, until done says so of what it was told how often, or some seconds have
// passed.
func (c *comparison) whileWritten(done func(map[string]int) bool) map[string]int {
	c.t.Helper()
	told, deadline := map[string]int{}, time.Now().Add(20*time.Second)
	c.prepare("base", "")
	require.NoError(c.t, c.Commit(c.ctx, "empty", "base"))
	for name, write := range map[string]func(context.Context, string) error{"grows": grow, "vanishes": vanish} {
		within(c.t, c.prepare(name, "empty"), func(dir string) {
			defer c.during(func(ctx context.Context) error { return write(ctx, dir) })()
			for time.Now().Before(deadline) && told[name] == 0 && !done(told) {
				_, err := c.diff(c.ours, name, plainly)
				if err != nil {
					require.ErrorIs(c.t, err, errdefs.ErrAborted)
					require.ErrorContains(c.t, err, name, "it names the file")
					told[name]++
					c.t.Log(err)
				}
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

func (c *comparison) interrupt() {
	c.t.Helper()
	c.prepareLong("long")
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	ended := c.startDiff(ctx, "long")
	cancel()
	require.ErrorIs(c.t, c.await(ended), context.Canceled)
	require.NoError(c.t, poll(diffTimeout, c.noIngests))

	ended = c.startDiff(c.ctx, "long")
	require.NoError(c.t, c.Remove(c.ctx, "long"))
	if err := c.await(ended); err != nil { // the kernel may have kept all for those that read it
		require.True(c.t, errdefs.IsAborted(err) || errdefs.IsNotFound(err), "%v", err)
		c.t.Log(err)
	}
	require.NoError(c.t, poll(diffTimeout, c.noIngests))

	c.prepareLong("long-too")
	ended = c.startDiff(c.ctx, "long-too")
	c.daemon.kill()
	err := c.await(ended)
	require.ErrorIs(c.t, err, errdefs.ErrUnavailable)
	c.daemon.restart()
	c.forgetLeases()
}

// prepareLong makes a container that takes some seconds to compare: a file with nothing in it, which takes no room, and small ones
// behind it.
func (c *comparison) prepareLong(key string) {
	c.t.Helper()
	size := int64(128 << 20)
	if raceEnabled { // the daemon compresses at a tenth of the speed
		size /= 8
	}
	within(c.t, c.prepare(key, "empty"), func(dir string) {
		require.NoError(c.t, os.WriteFile(filepath.Join(dir, "hole"), nil, 0o600))
		require.NoError(c.t, os.Truncate(filepath.Join(dir, "hole"), size))
		for i := range 100 {
			require.NoError(c.t, os.WriteFile(filepath.Join(dir, fmt.Sprint("small-", i)), []byte("small"), 0o600))
		}
	})
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
		select {
		case err := <-ended:
			return fmt.Errorf("the comparison has ended: %w", err)
		default:
		}
		if c.noIngests() == nil {
			return errors.New("nothing is written")
		}
		return ctx.Err()
	}))
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

func (c *comparison) noIngests() error {
	active, err := c.ours.content().ListStatuses(c.ctx)
	if err == nil && len(active) > 0 {
		err = fmt.Errorf("ingests: %v", active)
	}
	return err
}

// forgetLeases ends the leases, with the snapshots that they keep, and begins that of the test again. What a daemon that was killed
// had begun to write is containerd's, which collects it when the lease that the daemon took has expired.
func (c *comparison) forgetLeases() {
	c.t.Helper()
	for _, id := range c.words("leases", "ls", "--quiet") {
		c.ctr("leases", "delete", "--sync", id)
	}
	require.NoError(c.t, poll(diffTimeout, c.noIngests))
	c.ctr("leases", "create", "--id", lease)
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
	require.NoError(t, poll(diffTimeout, c.noIngests))
	_, err = c.diff(c.ours, "large") // small when it is compressed
	require.NoError(t, err)
	c.requireLaminaAlone()
	require.NoError(t, c.Remove(c.ctx, "large"))
}
