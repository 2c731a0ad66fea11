package overlayaufs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// probeName is the directory in the root in which Open tries things. One that a killed start left is removed by the next.
const probeName = ".probe"

// A finding is what a place is to be mounted with.
type finding struct {
	options []string // of overlayfs
	aufs    *aufs    // nil if it is overlayfs
}

// probe finds out how to mount in cfg.Root, by trying it there.
//
// It works on a thread with mounts of its own, which the kernel unmounts when the thread or the process ends. If ctx
// ends first, because the disk hangs, that thread goes on alone as far as the step it is at, and cleans up.
func probe(ctx context.Context, cfg Config) (finding, error) {
	type result struct {
		finding
		err error
	}
	done := make(chan result, 1)
	go func() {
		f, err := probeIn(ctx, cfg)
		done <- result{f, err}
	}()
	select {
	case r := <-done:
		return r.finding, r.err
	case <-ctx.Done():
		return finding{}, fmt.Errorf("union root %s: trying overlayfs: %w", cfg.Root, context.Cause(ctx))
	}
}

// probeIn makes the probe's directory, tries things and removes it.
func probeIn(ctx context.Context, cfg Config) (f finding, err error) {
	p := &prober{dir: filepath.Join(filepath.Clean(cfg.Root), probeName)}
	if err := p.remove(ctx); err != nil {
		return finding{}, err
	}
	if err := os.Mkdir(p.dir, 0o700); err != nil {
		return finding{}, err
	}
	// Even if ctx has ended.
	defer func() { err = errors.Join(err, p.remove(context.WithoutCancel(ctx))) }()
	if cfg.Driver != driverAufs {
		f.options, err = findOptions(ctx, p, cfg)
		if err == nil || cfg.Driver == driverOverlay || !isMissing(err) {
			return f, err
		}
	}
	overlayErr := err
	if isoErr := isolated(func() { f.aufs, err = p.findAufs(ctx, cfg) }); isoErr != nil {
		err = isoErr
	}
	if isMissing(err) && overlayErr != nil {
		return f, overlayErr // neither is there, and overlayfs is the easier to have
	}
	if err != nil {
		return f, explainAufs(cfg.Root, err)
	}
	return f, nil
}

// findOptions finds out how to mount with overlayfs.
func findOptions(ctx context.Context, p *prober, cfg Config) (options []string, err error) {
	if err := checkDType(p.dir); err != nil {
		return nil, err
	}
	if isoErr := isolated(func() { options, err = p.options(ctx, cfg) }); isoErr != nil {
		err = isoErr
	}
	if err != nil {
		return nil, explain(cfg.Root, err)
	}
	return options, nil
}

// A prober tries overlay options, each in fresh directories, as the kernel remembers some in them.
type prober struct {
	dir    string
	trials int
}

func (p *prober) remove(ctx context.Context) error {
	return onDir(filepath.Dir(p.dir), func(fd int) error {
		return removeTree(ctx, fd, filepath.Base(p.dir))
	})
}

// options finds out the options for all mounts. That of volatile is tried, but not among them.
func (p *prober) options(ctx context.Context, cfg Config) ([]string, error) {
	options, err := p.userXattr(ctx, cfg.UserXattr)
	if err != nil {
		return nil, err
	}
	for _, f := range []feature{indexFeature(cfg.Index), metacopyFeature(cfg.Metacopy)} {
		if options, err = p.choose(ctx, options, f); err != nil {
			return nil, err
		}
	}
	if cfg.Volatile == on {
		if _, err := p.choose(ctx, options, volatileFeature()); err != nil {
			return nil, err
		}
	}
	return options, nil
}

func indexFeature(value string) feature {
	return feature{key: "index", value: value, on: [][]string{{"index=on"}}, check: (*trial).hasIndex}
}

func metacopyFeature(value string) feature {
	return feature{
		key: "metacopy", value: value, check: (*trial).hasMetacopy,
		on: [][]string{{"metacopy=on"}, {"metacopy=on", "redirect_dir=on"}}, // some kernels want it named
	}
}

// volatileFeature is on: where it is off, no option is given.
func volatileFeature() feature {
	return feature{key: "volatile", value: on, on: [][]string{{"volatile"}}, check: (*trial).hasVolatile}
}

// userXattr finds out whether overlayfs works, and whether it needs to keep its marks in user attributes: it must
// where it may not write trusted ones, as in a user namespace.
func (p *prober) userXattr(ctx context.Context, value string) ([]string, error) {
	option := []string{"userxattr"}
	plainErr := p.try(ctx, nil, nil)
	if plainErr == nil && value != on {
		return nil, nil
	}
	userErr := p.try(ctx, option, nil)
	switch {
	case plainErr != nil && userErr != nil:
		return nil, plainErr // it is not the attributes
	case userErr != nil:
		return nil, refusal("userxattr", on, userErr)
	case value == off:
		return nil, refusal("userxattr", off, plainErr)
	}
	return option, nil
}

// A feature is an option of overlayfs that is on or off.
type feature struct {
	key, value string
	on         [][]string         // ways to turn it on, the first that works is taken
	check      func(*trial) error // whether it is on; the kernel may accept an option and go without
}

// choose returns the options with that of the feature appended. Auto turns it off where the kernel knows the option.
func (p *prober) choose(ctx context.Context, options []string, f feature) ([]string, error) {
	ways, check := [][]string{{f.key + "=off"}}, (func(*trial) error)(nil)
	if f.value == on {
		ways, check = f.on, f.check
	}
	var first error
	for _, way := range ways {
		with := append(options[:len(options):len(options)], way...)
		err := p.try(ctx, with, check)
		if err == nil {
			return with, nil
		}
		if first == nil {
			first = err
		}
	}
	switch {
	case ctx.Err() != nil:
		return nil, first
	case f.value == on || f.value == off:
		return nil, refusal(f.key, f.value, first)
	case errors.Is(first, unix.EINVAL): // it does not know the option
		return options, nil
	}
	return nil, first
}

// refusal is the error of a setting that cannot be had.
func refusal(key, value string, err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return fmt.Errorf("union.%s = %q: overlayfs of this kernel (%s) refuses it: %w", key, value, release(), errno)
	}
	return fmt.Errorf("union.%s = %q: overlayfs of this kernel (%s) goes without it: %w", key, value, release(), err)
}
