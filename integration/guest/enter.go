package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// The part of [qemu] that works in the guest.

// hostRoot is where the host's files stay in sight when others are mounted
// over them.
const hostRoot = "/run/host"

// shareOptions are those of 9P over virtio. A message is as long as the device
// can take it.
const shareOptions = "trans=virtio,version=9p2000.L,msize=512000"

// enter leaves the initramfs.
func (qemu) enter() error {
	if err := loadFiles(initModules); err != nil {
		return err
	}
	// Nobody changes these files while the guest runs, or it need not know.
	if err := mount(rootTag, initRoot, "9p", unix.MS_RDONLY, shareOptions+",cache=loose"); err != nil {
		return err
	}
	if err := os.Chdir(initRoot); err != nil {
		return err
	}
	if err := mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return err
	}
	if err := unix.Chroot("."); err != nil {
		return os.NewSyscallError("chroot", err)
	}
	return os.Chdir("/")
}

// loadFiles loads the modules in dir. There is no modprobe yet.
func loadFiles(dir string) error {
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, file := range files {
		if err := loadFile(filepath.Join(dir, file.Name())); err != nil {
			return err
		}
	}
	return nil
}

func loadFile(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	flags := 0
	if !strings.HasSuffix(name, ".ko") {
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	if err := unix.FinitModule(int(f.Fd()), "", flags); err != nil && !errors.Is(err, unix.EEXIST) {
		return &os.PathError{Op: "load module", Path: name, Err: err}
	}
	return nil
}

// mountHost takes the directory from the root: the guest can mount that once.
func (qemu) mountHost(dir string) error {
	if err := os.Mkdir(hostRoot, 0o755); err == nil {
		err = mount("/", hostRoot, "", unix.MS_BIND, "")
		if err != nil {
			return err
		}
	} else if !errors.Is(err, os.ErrExist) {
		return err
	}
	return mount(filepath.Join(hostRoot, dir), dir, "", unix.MS_BIND, "")
}

func (qemu) mountWritable(n int, dir string) error {
	return mount(mountTag(n), dir, "9p", 0, shareOptions)
}

// openLine opens a port of the virtio console.
func (qemu) openLine(fd int) (*os.File, error) {
	const ports = "/sys/class/virtio-ports/"
	names, err := filepath.Glob(ports + "*/name")
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		if strings.TrimSpace(string(data)) == portName(fd) {
			return openDevice(filepath.Join("/dev", filepath.Base(filepath.Dir(name))))
		}
	}
	return nil, fmt.Errorf("no port %s", portName(fd))
}

func (qemu) disk(n int) string { return fmt.Sprintf("/dev/vd%c", 'a'+n) }
