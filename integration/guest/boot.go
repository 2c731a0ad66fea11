package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// modules is what tests may need, beside what the kernel loads on its own.
var modules = []string{"dm-thin-pool", "loop", "overlay", "dm-flakey", "dm-log-writes", "quota_v2"}

// boot is the life of process 1 of a guest. It never returns: the parent ends
// the guest when it has the report.
func boot(m machine) {
	var r report
	b := booting{inside: m}
	err := b.prepare(context.Background())
	line, lineErr := b.openLine(fdControl)
	if lineErr != nil { // then the end of process 1 ends the guest, with a panic
		fmt.Fprintln(os.Stderr, errors.Join(err, lineErr))
		os.Exit(1)
	}
	if err == nil {
		stop := beat(line)
		r, err = b.runProgram()
		stop()
	}
	if err != nil {
		r.Error = fmt.Sprint(err)
	}
	r.writeTo(line)
	drain(line)
	for {
		_ = unix.Pause()
	}
}

// A booting guest, as its process 1 sees it.
type booting struct {
	inside
	*spec // from when the host's root is the guest's
}

// prepare makes the guest's file systems and devices.
func (b *booting) prepare(ctx context.Context) (err error) {
	if err := b.enter(); err != nil {
		return err
	}
	if b.spec, err = loadSpec(); err != nil {
		return err
	}
	if err := os.Setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{
		mountKernel, b.loadModules, b.mountDisk, b.mountDirs, b.nameDisks, startNetwork, b.startUdev,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// mountKernel mounts what the kernel makes.
func mountKernel(context.Context) error {
	for _, m := range []struct{ fs, target, data string }{
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""},
		{"devtmpfs", "/dev", ""},
		{"devpts", "/dev/pts", "gid=5,mode=620,ptmxmode=666"},
		{"tmpfs", "/dev/shm", "mode=1777"},
		{"tmpfs", "/run", "mode=755"},
		{"cgroup2", "/sys/fs/cgroup", ""},
	} {
		if strings.HasPrefix(m.target, "/dev/") {
			if err := os.MkdirAll(m.target, 0o755); err != nil {
				return err
			}
		}
		if err := mount(m.fs, m.target, m.fs, 0, m.data); err != nil {
			return err
		}
	}
	for name, target := range map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0",
		"/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, name); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

// loadModules loads modules from runDir, for the host has none of this kernel
// in /lib/modules, and lets the kernel find there what it loads on its own.
func (b *booting) loadModules(ctx context.Context) error {
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return err
	}
	if err := b.mountHost(runDir); err != nil {
		return err
	}
	if err := command(ctx, "modprobe", append([]string{"-d", runDir, "-a"}, modules...)...); err != nil {
		return err
	}
	const loader = "/run/modprobe"
	script := "#!/bin/sh\nexec modprobe -d " + runDir + " \"$@\"\n"
	if err := os.WriteFile(loader, []byte(script), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile("/proc/sys/kernel/modprobe", []byte(loader), 0); err != nil {
		return err
	}
	if _, err := os.Stat("/lib/modules"); err == nil { // for a plain modprobe
		return mount(filepath.Join(runDir, "lib/modules"), "/lib/modules", "", unix.MS_BIND, "")
	}
	return nil
}

// mountDisk makes the scratch file system and mounts it where programs write.
func (b *booting) mountDisk(ctx context.Context) error {
	const disk = "/run/disk"
	device := b.disk(0)
	if err := command(ctx, "mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,nodiscard", "-O", "quota,project", device); err != nil {
		return err
	}
	if err := os.Mkdir(disk, 0o755); err != nil {
		return err
	}
	if err := mount(device, disk, "ext4", 0, "prjquota"); err != nil {
		return err
	}
	for _, target := range []string{"/tmp", "/var/tmp", "/var/lib"} {
		dir := filepath.Join(disk, target)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if strings.HasSuffix(target, "tmp") {
			if err := os.Chmod(dir, os.ModeSticky|0o777); err != nil {
				return err
			}
		}
		if err := mount(dir, target, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	return nil
}

// mountDirs mounts directories of the host that lie below what the guest has
// mounted, and those that are to be writable.
func (b *booting) mountDirs(context.Context) error {
	for _, dir := range b.Visible {
		for _, hidden := range []string{"/dev", "/run", "/tmp", "/var/tmp", "/var/lib"} {
			if !strings.HasPrefix(dir+"/", hidden+"/") || dir == runDir {
				continue
			}
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			if err := b.mountHost(dir); err != nil {
				return err
			}
		}
	}
	for i, dir := range b.Writable {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := b.mountWritable(i, dir); err != nil {
			return err
		}
	}
	return nil
}

// nameDisks gives the extra disks names that are the same in all machines.
func (b *booting) nameDisks(context.Context) error {
	if b.Disks == 1 {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(ExtraDisk(0)), 0o755); err != nil {
		return err
	}
	for i := range b.Disks - 1 {
		if err := os.Symlink(b.disk(1+i), ExtraDisk(i)); err != nil {
			return err
		}
	}
	return nil
}

func startNetwork(context.Context) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer func() { _ = unix.Close(fd) }()
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request); err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	return unix.Sethostname([]byte("guest"))
}

func (b *booting) startUdev(ctx context.Context) error {
	if !b.Udev {
		return nil
	}
	const daemon = "/lib/systemd/systemd-udevd"
	if _, err := os.Stat(daemon); err != nil {
		return errors.New("a guest with udev needs udevd: apt-get install udev")
	}
	return errors.Join(
		command(ctx, daemon, "--daemon"),
		command(ctx, "udevadm", "trigger", "-s", "block"),
		command(ctx, "udevadm", "settle", "-t", "10"),
	)
}

func mount(source, target, fs string, flags uintptr, data string) error {
	if err := unix.Mount(source, target, fs, flags, data); err != nil {
		return &os.PathError{Op: "mount " + fs, Path: target, Err: err}
	}
	return nil
}

func command(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, bytes.TrimSpace(out))
	}
	return nil
}
