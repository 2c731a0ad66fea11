package overlayaufs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/userns"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/internal/features"
	"github.com/lamina-snapshotter/lamina/overlayaufs/internal/quota"
)

// Probes returns what the drivers of this backend may be able to do, with the way to find out: by trying it on the file
// system of cfg.Root, or of the directory in which the root will be made. A Backend may be open on the root meanwhile.
func Probes(cfg Config) []features.Probe {
	return slices.Concat(overlayProbes(cfg), aufsProbes(cfg))
}

func overlayProbes(cfg Config) []features.Probe {
	overlay := func(name, detail string, try func(context.Context, *prober) error) features.Probe {
		return features.Probe{Driver: driverOverlay, Name: name, Try: func(ctx context.Context) (string, error) {
			return detail, answer(explainOverlay(cfg.Root, tryBeside(ctx, cfg.Root, try)))
		}}
	}
	has := func(f feature) func(context.Context, *prober) error {
		return func(ctx context.Context, p *prober) error { return p.has(ctx, cfg, f) }
	}
	mounts := has(feature{})
	return slices.Concat([]features.Probe{
		{Driver: driverOverlay, Name: "mount", Try: func(ctx context.Context) (where string, err error) {
			err = tryBeside(ctx, cfg.Root, func(ctx context.Context, p *prober) error {
				where = "on " + fsType(p.dir)
				return mounts(ctx, p)
			})
			return where, answer(explainOverlay(cfg.Root, err))
		}},
		overlay("layers", fmt.Sprintf("%d below a writable one", maxLower), mounts),
		{Driver: driverOverlay, Name: "id maps", Try: func(ctx context.Context) (string, error) {
			return "idmapped mounts", answer(cfg.inTime(ctx, cfg.tryIDMap))
		}},
		overlay("parallel unpack", "", func(ctx context.Context, p *prober) error {
			return cmp.Or(cfg.whyNoRebase(), mounts(ctx, p))
		}),
	}, quotaProbes(driverOverlay, cfg, nil), []features.Probe{
		overlay("userxattr", "", func(ctx context.Context, p *prober) error {
			_, err := p.userXattr(ctx, on)
			return err
		}),
		overlay("index", "", has(indexFeature(on))),
		overlay("metacopy", "", has(metacopyFeature(on))),
		overlay("volatile", "", has(volatileFeature())),
	})
}

func aufsProbes(cfg Config) []features.Probe {
	mounts := func(ctx context.Context) error {
		_, err := tryAufsBeside(ctx, cfg)
		return features.AsOf("mount", err)
	}
	no := func(name string, why error) features.Probe {
		return features.Probe{Driver: driverAufs, Name: name, Try: func(context.Context) (string, error) { return "", why }}
	}
	return slices.Concat([]features.Probe{
		{Driver: driverAufs, Name: "mount", Try: func(ctx context.Context) (string, error) {
			a, err := tryAufsBeside(ctx, cfg)
			return strings.Join(a.options, ","), err
		}},
		{Driver: driverAufs, Name: "layers", Try: func(ctx context.Context) (string, error) {
			a, err := tryAufsBeside(ctx, cfg)
			return fmt.Sprintf("%d below a writable one", a.branches-1), features.AsOf("mount", err)
		}},
		no("id maps", errAufsMaps),
		no("parallel unpack", errors.New("containerd writes the deletions of a layer for overlayfs alone")),
	}, quotaProbes(driverAufs, cfg, mounts))
}

// quotaProbes are of what project quotas give a driver, if it is there at all.
func quotaProbes(driver string, cfg Config, there func(context.Context) error) []features.Probe {
	probe := func(name string, has func(quota.State) bool) features.Probe {
		return features.Probe{Driver: driver, Name: name, Try: func(ctx context.Context) (string, error) {
			if there != nil {
				if err := there(ctx); err != nil {
					return "", err
				}
			}
			return "project quotas", answer(cfg.tryQuota(has))
		}}
	}
	enforced := func(s quota.State) bool { return s.Enforced }
	return []features.Probe{
		probe("size limit", enforced),
		probe("inode limit", enforced),
		probe("usage in constant time", func(s quota.State) bool { return s.Counted }),
	}
}

// tryQuota asks the file system what it does for projects.
func (c Config) tryQuota(has func(quota.State) bool) error {
	dir, err := features.Existing(c.Root)
	if err != nil {
		return err
	}
	var state quota.State
	err = onDir(dir, func(fd int) (err error) {
		_, state, err = quota.Find(fd)
		return err
	})
	if isUntried(err) || err == nil && has(state) {
		return err
	}
	return errors.New(missingQuota(c.Root, fsType(dir), state, err))
}

// whyNoRebase is CanRebase of overlayfs, in words.
func (c Config) whyNoRebase() error {
	c.Driver = driverOverlay
	switch {
	case c.CanRebase():
		return nil
	case userns.RunningInUserNS():
		return errors.New("containerd cannot write deletions in a user namespace")
	}
	return fmt.Errorf("containerd writes deletions for overlayfs with trusted attributes alone, and union.userxattr is on, "+
		"or the layers in %s are written otherwise", c.Root)
}

// ProbeRebase returns why layers cannot be unpacked side by side in cfg.Root, or nil: see CanRebase. Where the kernel has not
// loaded overlayfs yet it tries to mount it, as Probes does, which takes root: with aufs alone a new root is written in its form.
func ProbeRebase(ctx context.Context, cfg Config) error {
	if cfg.Driver == driverAufs {
		return errors.New("containerd writes deletions for overlayfs alone, and union.driver is aufs")
	}
	listed, err := os.ReadFile(filesystemsFile)
	if err != nil {
		return err
	}
	return cfg.inTime(ctx, func(ctx context.Context) error {
		return cfg.probeRebase(listed, func() error {
			return tryBeside(ctx, cfg.Root, func(ctx context.Context, p *prober) error { return p.has(ctx, cfg, feature{}) })
		})
	})
}

// filesystemsFile has the file systems that the kernel has, one a line.
const filesystemsFile = "/proc/filesystems"

func (c Config) probeRebase(listed []byte, mounts func() error) error {
	if err := c.whyNoRebase(); err != nil || slices.Contains(strings.Fields(string(listed)), driverOverlay) {
		return err
	}
	return explainOverlay(c.Root, mounts())
}

// tryAufsBeside returns how aufs mounts here, or the error of a Probe.
func tryAufsBeside(ctx context.Context, cfg Config) (*aufs, error) {
	found := &aufs{}
	if _, err := os.Lstat(runDir); errors.Is(err, fs.ErrNotExist) {
		defer os.Remove(runDir) //nolint:errcheck // it may not have been made, or others may use it
	}
	// What there is, not what is set of overlayfs; and nothing is made in the root.
	err := tryBeside(ctx, cfg.Root, func(ctx context.Context, p *prober) error {
		a, err := p.findAufs(ctx, Config{Root: p.dir, Aufs: cfg.Aufs})
		if err == nil {
			found = a
		}
		return err
	})
	switch {
	case isMissing(err):
		err = noAufs(unix.ENODEV) // without the place where it was tried
	case err != nil && !isUntried(err):
		err = explainAufs(cfg.Root, err)
	}
	return found, answer(err)
}

// has tries a feature upon what every mount has here, or that alone.
func (p *prober) has(ctx context.Context, cfg Config, f feature) error {
	options, err := p.userXattr(ctx, cfg.UserXattr)
	if err == nil && f.key != "" {
		_, err = p.choose(ctx, options, f)
	}
	return err
}

// answer says whether an error is a no.
func answer(err error) error {
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return features.Untried(err)
	case isUntried(err):
		return features.Untried(fmt.Errorf("it takes root, or the namespace of a rootless containerd: %w", err))
	}
	return err
}

// explainOverlay is explain for an error that somebody with more privileges would get too.
func explainOverlay(root string, err error) error {
	if err == nil || isUntried(err) {
		return err
	}
	return explain(root, err)
}

// isUntried reports whether somebody with more privileges might have succeeded. In a user namespace nobody has more.
func isUntried(err error) bool {
	return errors.Is(err, fs.ErrPermission) && !userns.RunningInUserNS()
}

// Directories in which something is tried beside a Backend have names that begin with trialPrefix. One that is left in a
// place is that of a process that was killed, and is removed after trialAge by the next. One that is left where the place is
// still to be made stays: that directory is somebody else's.
const (
	trialPrefix = ".lamina-probe-"
	trialAge    = time.Hour
)

// tryBeside calls try with a prober on the file system that root lies on, or will. Nothing of it is left.
func tryBeside(ctx context.Context, root string, try func(context.Context, *prober) error) (err error) {
	top, err := features.Existing(root)
	if err != nil {
		return err
	}
	if err := removeOldTrials(ctx, root); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(top, trialPrefix)
	if err != nil {
		return err
	}
	p := &prober{dir: dir}
	// Even if ctx has ended.
	defer func() { err = errors.Join(err, p.remove(context.WithoutCancel(ctx))) }()
	if err := checkDType(dir); err != nil {
		return err
	}
	if isoErr := isolated(func() { err = try(ctx, p) }); isoErr != nil {
		return isoErr
	}
	return err
}

// removeOldTrials removes what killed processes left in root, if that says that it is a place of ours.
func removeOldTrials(ctx context.Context, root string) error {
	if was, err := readOwner(root); err != nil || was.UUID == "" {
		return nil //nolint:nilerr // Open says it; what is not surely ours is not touched
	}
	entries, err := os.ReadDir(root)
	for _, e := range entries {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), trialPrefix) {
			continue
		}
		if info, gone := e.Info(); gone == nil && time.Since(info.ModTime()) > trialAge {
			p := prober{dir: filepath.Join(root, e.Name())}
			err = errors.Join(err, p.remove(ctx))
		}
	}
	return err
}
