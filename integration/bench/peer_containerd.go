package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/snapshots/devmapper"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
)

const (
	overlayfs  = "overlayfs"
	devMapper  = "devmapper"
	volumeSize = "10GiB" // devmapper has to be told; Lamina's volumes are as large
	dataSize   = "16G"
	metaSize   = "256M"
	blockSize  = 128 // sectors, as Lamina's
)

// peerOf is containerd's snapshotter that a backend is measured beside.
var peerOf = map[string]string{union: overlayfs, thin: devMapper}

// openContainerd opens a snapshotter of containerd's with the defaults of its plugin. Its close ends what it started.
func openContainerd(ctx context.Context, name, dir string) (*peer, error) {
	switch name {
	case overlayfs:
		sn, err := overlay.NewSnapshotter(filepath.Join(dir, "root"), overlay.AsynchronousRemove)
		if err != nil {
			return nil, err
		}
		return &peer{Snapshotter: sn, name: name, close: sn.Close}, nil
	case devMapper:
		return openDevmapper(ctx, dir)
	default:
		return nil, fmt.Errorf("containerd has no snapshotter %q that is measured", name)
	}
}

func inProcessOf(name string) string { return name + ", in process" }
func proxiedOf(name string) string   { return name + ", proxied" }

func openInProcess(ctx context.Context, name, dir string) (*peer, error) {
	p, err := openContainerd(ctx, name, dir)
	if err != nil {
		return nil, err
	}
	p.name, p.kind = inProcessOf(name), kinds[name]
	return p, nil
}

// openDevmapper opens devmapper with a pool of its own.
func openDevmapper(ctx context.Context, dir string) (*peer, error) {
	pool, removePool, err := makePool(ctx, dir)
	if err != nil {
		return nil, err
	}
	sn, err := devmapper.NewSnapshotter(ctx, &devmapper.Config{
		RootPath: filepath.Join(dir, "root"), PoolName: pool, BaseImageSize: volumeSize, FileSystemType: "ext4",
	})
	if err != nil {
		return nil, errors.Join(err, removePool())
	}
	return &peer{Snapshotter: sn, name: devMapper, close: func() error { return errors.Join(sn.Close(), removePool()) }}, nil
}

// makePool makes a pool as devmapper's documentation does it (docs/snapshotters/devmapper.md), on sparse files as Lamina's.
func makePool(ctx context.Context, dir string) (pool string, remove func() error, err error) {
	var undo []func() error
	remove = func() error {
		var errs []error
		for _, f := range slices.Backward(undo) {
			errs = append(errs, f())
		}
		return errors.Join(errs...)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, remove())
		}
	}()
	loop := func(name, size string) string {
		file := filepath.Join(dir, name)
		var device string
		if err == nil {
			_, err = output(ctx, "truncate", "--size", size, file)
		}
		if err == nil { // to its end: what is made must be known to be undone
			device, err = output(context.WithoutCancel(ctx), "losetup", "--find", "--show", "--direct-io=on", file)
		}
		if err == nil {
			undo = append(undo, func() error { return command(context.WithoutCancel(ctx), "losetup", "--detach", device) })
		}
		return device
	}
	meta, data := loop("metadata", metaSize), loop("data", dataSize)
	if err != nil {
		return "", nil, err
	}
	pool = "bench-" + filepath.Base(filepath.Dir(dir)) + "-" + filepath.Base(dir)
	sectors, err := output(ctx, "blockdev", "--getsz", data)
	if err != nil {
		return "", nil, err
	}
	undo = append(undo, func() error { return removePool(context.WithoutCancel(ctx), pool) }) // also of one whose creation fails half-way
	if err := command(context.WithoutCancel(ctx), "dmsetup", "create", pool, "--table", fmt.Sprintf("0 %s thin-pool %s %s %d 0", sectors, meta, data, blockSize)); err != nil {
		return "", nil, err
	}
	return pool, remove, nil
}

// removePool removes a pool's volumes, which are named after it, and the pool.
func removePool(ctx context.Context, pool string) error {
	names, err := output(ctx, "dmsetup", "info", "--columns", "--noheadings", "--options", "name", "--sort", "-name")
	errs := []error{err}
	for name := range strings.FieldsSeq(names) {
		if strings.HasPrefix(name, pool) {
			errs = append(errs, command(ctx, "dmsetup", "remove", "--retry", name))
		}
	}
	return errors.Join(errs...)
}

func command(ctx context.Context, name string, args ...string) error {
	_, err := output(ctx, name, args...)
	return err
}

// commandTime bounds a command: one on a device that hangs would keep the program for ever.
const commandTime = 2 * time.Minute

// output returns what a command prints, without the white space around.
func output(ctx context.Context, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	text := strings.TrimSpace(string(out))
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, text)
	}
	return text, nil
}

var _ snapshots.Snapshotter = (*peer)(nil)
