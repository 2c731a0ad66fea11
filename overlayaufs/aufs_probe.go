package overlayaufs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// xinoName is the file that aufs makes and removes again at each mount, to keep its inode numbers in. The kernel lets
	// one mount after the other use the name (au_xino_create in fs/aufs/xino.c, since aufs 4.14). A power cut between the
	// two steps leaves an empty file, with which no union could be mounted: so it is removed before each trial. That does
	// a mount that is being made no harm: it looks whether its file still has a name.
	xinoName = ".xino"

	// runDir is where it is if the root's file system cannot have it. It must be in the mount namespace of who mounts too,
	// as the socket must.
	runDir = "/run/lamina"

	// configFile has the settings that the module was built with. A kernel that has aufs built in has none.
	configFile = "/sys/fs/aufs/config"

	branchesKey = "CONFIG_AUFS_BRANCH_MAX_"
)

// findAufs finds out how to mount with aufs, by trying it.
func (p *prober) findAufs(ctx context.Context, cfg Config) (*aufs, error) {
	if err := cfg.checkAufs(); err != nil {
		return nil, err
	}
	if strings.Contains(cfg.Root, "=") {
		return nil, fmt.Errorf("union root %q: aufs cannot be given a path with \"=\" in it", cfg.Root)
	}
	text, err := os.ReadFile(configFile)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	a, err := p.findXino(ctx, cfg)
	if err != nil {
		return nil, err
	}
	a.branches = branchLimit(string(text))
	for _, s := range []setting{{key: "udba", value: cfg.Aufs.UDBA}, {key: "create", value: cfg.Aufs.Create}} {
		if !isSet(s.value) {
			continue
		}
		a.options = append(a.options, s.key+"="+s.value)
		if err := p.tryAufs(ctx, a); err != nil {
			return nil, fmt.Errorf("union.aufs.%s = %q: aufs of this kernel (%s) refuses it: %w", s.key, s.value, release(), err)
		}
	}
	// Without it who may read a file in the writable layer cannot if a layer below forbids it (Linux 3.16).
	with := *a
	with.options = append(with.options[:len(with.options):len(with.options)], "dirperm1")
	switch err := p.tryAufs(ctx, &with); {
	case err == nil:
		return &with, nil
	case errors.Is(err, unix.EINVAL):
		return a, nil
	default:
		return nil, err
	}
}

// findXino returns an aufs with a place for its inode numbers.
func (p *prober) findXino(ctx context.Context, cfg Config) (*aufs, error) {
	dirs := []string{cfg.Aufs.Xino}
	if !isSet(cfg.Aufs.Xino) {
		dirs = []string{filepath.Clean(cfg.Root), runDir}
	}
	var errs []error
	for _, dir := range dirs {
		err := os.MkdirAll(dir, 0o700)
		a := &aufs{xino: filepath.Join(dir, xinoName), perMount: maxPerMount}
		if err == nil {
			err = p.tryAufs(ctx, a)
		}
		if err == nil {
			return a, nil
		}
		errs = append(errs, fmt.Errorf("with its inode numbers in %s on %s: %w", dir, fsType(dir), err))
		if !errors.Is(err, unix.EINVAL) {
			break
		}
	}
	return nil, errors.Join(errs...)
}

// tryAufs is try with aufs. It mounts by steps, as long chains are.
func (p *prober) tryAufs(ctx context.Context, a *aufs) error {
	if err := os.Remove(a.xino); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	steps := *a
	steps.perMount = 2
	return p.tryStrategy(ctx, &steps, false, (*trial).hasWhiteouts)
}

// hasWhiteouts looks for the files by which aufs says what is deleted and hidden.
func (t *trial) hasWhiteouts() error {
	for _, name := range []string{whPrefix + "gone", filepath.Join("replaced", opaqueName)} {
		if _, err := os.Lstat(filepath.Join(t.upper, name)); err != nil {
			return fmt.Errorf("aufs has made no %s", name)
		}
	}
	return nil
}

// branchLimit returns how many branches a union has at most, from what the module says of itself.
func branchLimit(config string) int {
	for line := range strings.Lines(config) {
		if text, ok := strings.CutPrefix(line, branchesKey); ok {
			number, _, _ := strings.Cut(text, "=")
			if n, err := strconv.Atoi(number); err == nil && n > 0 {
				return n
			}
		}
	}
	return defaultBranches
}

// explainAufs says what an error of the first trial means for the root.
func explainAufs(root string, err error) error {
	switch {
	case isMissing(err):
		return noAufs(err)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("union: mounting aufs needs root (CAP_SYS_ADMIN): %w", err)
	}
	return fmt.Errorf("union root %s: trying aufs (the kernel's log says why it refuses something): %w", root, err)
}
