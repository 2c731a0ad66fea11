package dmthin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/userns"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
	"github.com/lamina-snapshotter/lamina/internal/features"
)

const driver = "thin"

// Probes returns what this backend may be able to do with this configuration, with the way to find out. They make no pool
// and look at none. The kernel may load the modules that they ask for.
func Probes(c Config) []features.Probe {
	c = c.withDefaults()
	probe := func(name, detail string, try func(context.Context) error) features.Probe {
		return features.Probe{Driver: driver, Name: name, Try: func(ctx context.Context) (string, error) {
			return detail, answer(try(ctx))
		}}
	}
	no := func(name, why string) features.Probe {
		return probe(name, "", func(context.Context) error { return errors.New(why) })
	}
	volumes := func(context.Context) error { return features.AsOf("mount", answer(c.haveAll())) }
	return []features.Probe{
		probe("mount", c.FS+" volumes", func(context.Context) error { return c.haveAll() }),
		probe("layers", "any number", volumes),
		probe("id maps", "idmapped mounts", func(ctx context.Context) error {
			if err := volumes(ctx); err != nil {
				return err
			}
			return ProbeIDMap(ctx, c)
		}),
		no("parallel unpack", "a volume is a whole tree: it cannot be made before what is below it"),
		probe("size limit", "the size of the volume", volumes),
		no("inode limit", "a volume has the inodes of its file system, which go with its size"),
		probe("usage in constant time", "from the pool", volumes),
		{Driver: driver, Name: "device mapper", Try: versionOf((*dm.Control).Version)},
		{Driver: driver, Name: "thin-pool target", Try: versionOf(thinPoolVersion)},
		probe("loop devices", "", func(context.Context) error { return haveLoop() }),
		probe("ext4", "", func(context.Context) error { return haveFilesystem(ext4{}) }),
		probe("xfs", "", func(context.Context) error { return haveFilesystem(xfs{}) }),
		probe("discard", "", func(context.Context) error { return c.haveDiscard() }),
		probe("online growth", "the pool, volumes and their file systems", volumes),
		probe("repair", "", func(context.Context) error { return haveThinTools() }),
	}
}

// answer says what an error of a probe means.
func answer(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return features.Untried(err)
	case errors.Is(err, features.ErrUntried), !errors.Is(err, fs.ErrPermission):
		return err
	case userns.RunningInUserNS():
		return fmt.Errorf("device mapper and loop devices serve the first user namespace alone: %w", err)
	}
	return features.Untried(fmt.Errorf("it takes root: %w", err))
}

// haveAll returns what is missing of what a pool and its volumes need.
func (c Config) haveAll() error {
	if _, err := askVersion(thinPoolVersion); err != nil {
		return err
	}
	if c.Pool == poolLoop {
		if err := haveLoop(); err != nil {
			return err
		}
	}
	kind, err := fsByName(c.FS)
	if err != nil {
		return err
	}
	return haveFilesystem(kind)
}

// versionOf returns a probe that asks device mapper for a version.
func versionOf(ask func(*dm.Control) (dm.Version, error)) func(context.Context) (string, error) {
	return func(context.Context) (string, error) {
		detail, err := askVersion(ask)
		return detail, answer(err)
	}
}

func askVersion(ask func(*dm.Control) (dm.Version, error)) (text string, err error) {
	err = keepingNode("/dev/mapper/control", func() error {
		control, err := dm.Open()
		if err != nil {
			return err
		}
		v, err := ask(control)
		if err == nil {
			text = v.String()
		}
		return errors.Join(err, control.Close())
	})
	return text, err
}

func thinPoolVersion(c *dm.Control) (dm.Version, error) { return c.TargetVersion("thin-pool") }

func haveLoop() error {
	return keepingNode("/dev/loop-control", func() error {
		f, err := openLoopControl()
		if err != nil {
			return err
		}
		return f.Close()
	})
}

// keepingNode removes the node of a device, and the directory of it, if fn has made them.
func keepingNode(path string, fn func() error) error {
	for _, made := range []string{filepath.Dir(path), path} {
		if _, err := os.Lstat(made); errors.Is(err, fs.ErrNotExist) {
			defer os.Remove(made) //nolint:errcheck // it may not have been made, or others may use it
		}
	}
	return fn()
}

// haveFilesystem returns whether volumes can be formatted with a file system, and mounted.
func haveFilesystem(kind filesystem) error {
	m := kind.command("", minVolumeXFS)
	if _, err := findProgram(m.program); err != nil {
		return missingProgram(m.program, m.pkg, err)
	}
	fd, err := unix.Fsopen(kind.String(), unix.FSOPEN_CLOEXEC)
	switch {
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("this kernel has no %s: %w", kind, err)
	case err != nil:
		return &os.PathError{Op: "fsopen", Path: kind.String(), Err: err}
	}
	return os.NewSyscallError("close", unix.Close(fd))
}

func haveThinTools() error {
	for _, program := range []string{"thin_check", "thin_repair"} {
		if _, err := findProgram(program); err != nil {
			return missingProgram(program, thinTools, err)
		}
	}
	return nil
}

// haveDiscard returns whether what the pool lies on takes space back.
func (c Config) haveDiscard() error {
	if c.Pool == poolLoop {
		return havePunchHole(c.Root)
	}
	var errs []error
	for _, device := range c.Devices {
		errs = append(errs, haveDeviceDiscard(device))
	}
	return errors.Join(errs...)
}

// havePunchHole tries it on a file without a name in the file system of root.
func havePunchHole(root string) error {
	dir, err := features.Existing(root)
	if err != nil {
		return err
	}
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &os.PathError{Op: "make a file without a name in", Path: dir, Err: err}
	}
	f := os.NewFile(uintptr(fd), dir)
	defer f.Close() //nolint:errcheck // it goes with its last descriptor
	if err := f.Truncate(minBlock); err != nil {
		return err
	}
	err = unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, minBlock)
	if err != nil {
		return &os.PathError{Op: "punch a hole into a file in", Path: dir, Err: err}
	}
	return nil
}

// haveDeviceDiscard asks the kernel for the most that a device, or the disk that it is a partition of, discards at once.
func haveDeviceDiscard(device string) error {
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil {
		return &os.PathError{Op: "stat", Path: device, Err: err}
	}
	number := uint64(st.Rdev) //nolint:unconvert // 32 bits on mips
	sys := fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(number), unix.Minor(number))
	text, err := os.ReadFile(filepath.Join(sys, "queue/discard_max_bytes"))
	if errors.Is(err, fs.ErrNotExist) {
		text, err = os.ReadFile(sys + "/../queue/discard_max_bytes") // not Join: it would cut the link away
	}
	if err == nil && strings.TrimSpace(string(text)) == "0" {
		err = fmt.Errorf("%s discards nothing", device)
	}
	return err
}
