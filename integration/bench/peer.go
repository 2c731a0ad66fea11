package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

const (
	union = "union"
	thin  = "thin"
)

// A peer is a snapshotter that is measured.
type peer struct {
	snapshots.Snapshotter
	kind
	name  string
	dir   string
	close func() error
}

// A kind says what one has to know of a snapshotter to measure it.
type kind struct {
	// slow ones need most of a second for an operation.
	slow bool
	// needsUdev is set of what waits for udevd.
	needsUdev bool
}

var kinds = map[string]kind{devMapper: {slow: true, needsUdev: true}}

// The names under which results of Lamina's stand. laminaUnion is beside the thin one, on the same disk.
const laminaUnion = laminaName + ", union"

// openPeers starts Lamina and what it is measured beside, each with a directory of its own in dir.
func openPeers(ctx context.Context, s settings, dir string) (peers []*peer, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, closePeers(peers))
		}
	}()
	other := peerOf[s.backend]
	filled := func(open func(context.Context, string, string) (*peer, error)) func(string) (*peer, error) {
		return func(dir string) (*peer, error) {
			if s.views > 0 {
				if err := databaseViews(ctx, filepath.Join(dir, "root"), s.views); err != nil {
					return nil, err
				}
			}
			return open(ctx, other, dir)
		}
	}
	all := []func(dir string) (*peer, error){
		func(dir string) (*peer, error) { return openLamina(ctx, s, laminaName, s.backend, dir) },
		filled(openInProcess),
	}
	if !s.unproxied {
		all = append(all, filled(openProxied))
	}
	if s.backend == thin && s.views == 0 { // a Walk reads the store alone, whatever the backend is
		all = append(all, func(dir string) (*peer, error) { return openLamina(ctx, s, laminaUnion, union, dir) })
	}
	for _, open := range all {
		own := filepath.Join(dir, string(rune('a'+len(peers))))
		if err := os.Mkdir(own, 0o700); err != nil {
			return peers, err
		}
		p, err := open(own)
		if err != nil {
			return peers, err
		}
		p.dir = own
		peers = append(peers, p)
	}
	return peers, nil
}

func closePeers(peers []*peer) error {
	var errs []error
	for _, p := range peers {
		errs = append(errs, p.close())
	}
	return errors.Join(errs...)
}

// settle waits, once base is there, for what the last operation has left to others: removals to the background, devices to udevd, and what is
// to be written, which the next fsync of whoever comes next would have to wait for.
func (p *peer) settle(ctx context.Context) error {
	if err := p.cleanup(ctx); err != nil {
		return fmt.Errorf("cleanup: %w", err)
	}
	if p.needsUdev {
		if err := command(ctx, "udevadm", "settle"); err != nil {
			return err
		}
	}
	if err := syncDisk(p.dir); err != nil {
		return err
	}
	// Who serves behind a socket is awake, as who is in this process is.
	_, err := p.Stat(ctx, base)
	return err
}

const (
	removeTries = 50
	removeRest  = 20 * time.Millisecond
)

// Remove removes a snapshot. devmapper refuses to while somebody has the device open, as udevd may on a busy machine, and leaves it to
// its caller to come again, as containerd's garbage collection does.
func (p *peer) Remove(ctx context.Context, key string) (err error) {
	for range removeTries {
		if err = p.Snapshotter.Remove(ctx, key); !p.needsUdev || !errdefs.IsFailedPrecondition(err) {
			return err
		}
		select {
		case <-time.After(removeRest):
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		}
	}
	return err
}

// cleanup deletes what has been removed, or waits for it.
func (p *peer) cleanup(ctx context.Context) error {
	if c, ok := p.Snapshotter.(snapshots.Cleaner); ok {
		return c.Cleanup(ctx)
	}
	return nil
}

// udevd is Debian's.
const udevd = "/lib/systemd/systemd-udevd"

// turn is called before what is measured of a peer, and what it returns afterwards. Who needs no udevd does not share the guest's
// only processor with it: it is ended, and started anew. Were it only told to rest it would do later what it was told of
// meanwhile, some 100 ms for a device, which are most of a run. On a host, whose udevd is not ours to end, it goes on.
func (p *peer) turn(ctx context.Context, s settings) (end func() error, err error) {
	if s.backend != thin {
		return func() error { return nil }, nil
	}
	if err := command(ctx, "udevadm", "settle"); err != nil || p.needsUdev || !inGuest() || runtime.NumCPU() > 1 {
		return func() error { return nil }, err
	}
	if err := command(context.WithoutCancel(ctx), "udevadm", "control", "--exit"); err != nil {
		return nil, err
	}
	return func() error { return command(context.WithoutCancel(ctx), udevd, "--daemon") }, nil
}

// inGuest reports whether this is a User-Mode Linux guest, of which integration/guest makes one: its udevd is nobody else's.
func inGuest() bool {
	cpu, err := os.ReadFile("/proc/cpuinfo")
	return err == nil && bytes.Contains(cpu, []byte("User Mode Linux"))
}
