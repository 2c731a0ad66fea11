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

	"github.com/lamina-snapshotter/lamina/internal/failpoint"
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
	size, err := deviceSize(device)
	if err != nil {
		return err
	}
	if err := fs.command(device, size).run(ctx); err != nil {
		return fmt.Errorf("format %s: %w", device, err)
	}
	failpoint.Hit("thin.formatted")
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

func (m mkfs) run(ctx context.Context) error {
	return runProgram(ctx, m.program, m.pkg, m.env, m.args...)
}

// A programError is returned when a program has run, and said that something is wrong.
type programError struct {
	program string
	err     error
	said    []byte
}

// Error returns the program's exit code and what it said.
func (e *programError) Error() string { return fmt.Sprintf("%s: %v: %s", e.program, e.err, e.said) }

// Unwrap returns what os/exec said.
func (e *programError) Unwrap() error { return e.err }

// runProgram runs a program of the Debian package pkg. It ends when ctx does, or this process.
func runProgram(ctx context.Context, program, pkg string, env []string, args ...string) error {
	path, err := findProgram(program)
	if err != nil {
		return missingProgram(program, pkg, err)
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}, env...)
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
		return fmt.Errorf("%s: %w", program, ctx.Err())
	default:
		return &programError{program, err, bytes.TrimSpace(stderr.Bytes())}
	}
}

func missingProgram(program, pkg string, err error) error {
	return fmt.Errorf("there is no %s (apt-get install %s): %w", program, pkg, err)
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

const (
	ext4Block      = 4096
	minExt4Journal = 4 // MiB; the least that mke2fs takes with such blocks
	maxExt4Journal = 32
	ext4Reserve    = 1 << 40 // bytes
)

// command leaves unwritten what a new volume reads as zeroes anyway: the inode tables (lazy_itable_init) and the journal
// (lazy_journal_init). A volume of 10 GiB then has blocks for 1.6 MiB, and as many after it was mounted for a minute with
// noInitITable; with the options of Debian 12 it is 69 MiB, and 229 MiB after that minute. assume_storage_prezeroed would do
// without the mount option, and maps as much, but e2fsprogs have it from 1.47 on only.
//
// The journal is shorter than the 64 MiB that 10 GiB get by default, as each volume gets one of its own by and by. To
// unpack 12,000 files took as long with 16 and 32 MiB, and a third longer with 8.
//
// resize= reserves descriptors for growth to 1 TiB, each a block that is written; by default it is 1024 times the size, and
// 5.1 MiB instead of 1.6. Beyond, the kernel goes on without reserved ones (ext4_convert_meta_bg in fs/ext4/resize.c).
//
// The features are those of Linux 3.18 and later. mke2fs takes stride and stripe width from the device: a block of the pool.
func (ext4) command(device string, size uint64) mkfs {
	journal := min(max(size/32/mebibyte, minExt4Journal), maxExt4Journal)
	resize := max(2*size, ext4Reserve) / ext4Block
	return mkfs{
		program: "mke2fs", pkg: "e2fsprogs",
		// All that matters is said below, so nothing depends on an /etc/mke2fs.conf. mke2fs warns that it is empty.
		env: []string{"MKE2FS_CONFIG=/dev/null"},
		args: []string{
			"-q", "-F",
			"-b", strconv.Itoa(ext4Block), "-I", "256", "-i", "16384", "-m", "0",
			"-O", "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super," +
				"large_file,huge_file,dir_nlink,extra_isize,metadata_csum",
			"-J", "size=" + strconv.FormatUint(journal, 10),
			"-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0,resize=" + strconv.FormatUint(resize, 10),
			device,
		},
	}
}

func (fs ext4) small(device string) []mkfs { return []mkfs{fs.command(device, trialSize)} }

// command maps 64.4 MiB of a volume of 10 GiB, 64 of them the log, which mkfs.xfs makes no shorter than that and writes
// with zeroes. All volumes of one template share them until they write them. It does not discard (-K) what has no blocks.
//
// Four allocation groups are what a single disk gets; mkfs.xfs takes the volume for an array, as it says how large a block
// of the pool is, and would make 16, and all groups that are added when it grows as small. Other options stay the
// program's own, so that the mkfs.xfs of a distribution makes what its kernel knows.
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

// small is by an option that mkfs.xfs has since 6.0, when it began to refuse less than 300 MiB.
func (xfs) small(device string) []mkfs {
	plain := mkfs{program: "mkfs.xfs", pkg: "xfsprogs", args: []string{"-q", "-f", "-K", "-b", "size=4096", device}}
	small := plain
	small.args = append([]string{"--unsupported"}, plain.args...)
	return []mkfs{small, plain}
}
