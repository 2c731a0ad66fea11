package dmthin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// formatVersion changes with the options below. It is part of a template's name, so that volumes are not made of one that
// was formatted with others.
const formatVersion = 1

// mkfs is how a file system is made.
type mkfs struct {
	program string
	pkg     string // the Debian package that has it
	args    []string
	env     []string
}

// format makes a file system on an empty volume, one that has no blocks yet, with nothing in it but a root directory of
// root's with mode 0755. A device whose start is not all zeroes is refused. On error the volume is of no use any more. At
// return it is durable.
func format(ctx context.Context, device string, fs filesystem) error {
	head, err := readHead(device)
	if err != nil {
		return err
	}
	if !blank(head) {
		return fmt.Errorf("format %s: it holds something already", device)
	}
	size, err := blockDeviceSize(device)
	if err != nil {
		return err
	}
	if err := fs.command(device, size).run(ctx); err != nil {
		return fmt.Errorf("format %s: %w", device, err)
	}
	// To mount it also shows that this kernel can: mkfs may be newer than the kernel, and so may its defaults.
	m, err := mountDetached(fs, device, fs.ownMount(false))
	if err != nil {
		return fmt.Errorf("format %s: %w", device, err)
	}
	return errors.Join(m.removeLostFound(), m.close(ctx))
}

// removeLostFound removes the directory that mkfs.ext4 makes for e2fsck, which makes it again when it needs it: a layer
// has only what its image has.
func (m *detachedMount) removeLostFound() error {
	err := unix.Unlinkat(int(m.root.Fd()), "lost+found", unix.AT_REMOVEDIR)
	runtime.KeepAlive(m.root)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "remove lost+found of", Path: m.device, Err: err}
	}
	return nil
}

// run runs the program. It ends when ctx does, or this process.
func (m mkfs) run(ctx context.Context) error {
	path, err := findProgram(m.program)
	if err != nil {
		return fmt.Errorf("there is no %s (apt-get install %s): %w", m.program, m.pkg, err)
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path, m.args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}, m.env...)
	cmd.Stderr = &stderr
	// The signal comes when the thread ends that started the program (prctl(2)), so the thread is to last.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err = cmd.Run()
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil: // rather than "signal: killed"
		return fmt.Errorf("%s: %w", m.program, ctx.Err())
	default:
		return fmt.Errorf("%s: %w: %s", m.program, err, bytes.TrimSpace(stderr.Bytes()))
	}
}

// findProgram looks where programs of root are too: a service's PATH may lack it.
func findProgram(name string) (string, error) {
	path, err := exec.LookPath(name)
	if !errors.Is(err, exec.ErrNotFound) {
		return path, err
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", err
}

const mib = 1 << 20

func (ext4) command(device string, size uint64) mkfs {
	journal := min(max(size/32/mib, 4), 32)
	resize := max(size*2, 1<<40) / 4096
	return mkfs{
		program: "mke2fs", pkg: "e2fsprogs",
		// All is said here: nothing is to depend on what an /etc/mke2fs.conf says.
		env: []string{"MKE2FS_CONFIG=/dev/null"},
		args: []string{
			"-q", "-F",
			"-b", "4096", "-I", "256", "-i", "16384", "-m", "0",
			"-O", "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super," +
				"large_file,huge_file,dir_nlink,extra_isize,metadata_csum",
			"-J", "size=" + strconv.FormatUint(journal, 10),
			"-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0,resize=" + strconv.FormatUint(resize, 10),
			device,
		},
	}
}

func (xfs) command(device string, _ uint64) mkfs {
	return mkfs{
		program: "mkfs.xfs", pkg: "xfsprogs",
		args: []string{
			"-q", "-f", "-K",
			"-b", "size=4096", "-d", "agcount=4", "-i", "size=512", "-m", "crc=1,finobt=1,reflink=1", "-l", "size=64m",
			device,
		},
	}
}
