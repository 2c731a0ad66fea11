package dm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// nodes are the files by which devices are found.
type nodes struct{ dev, proc string } // /dev, /proc

// Node returns the path of a device's node, /dev/mapper/<name>. [Control.MakeNode] sees that it is there.
func Node(name string) string { return filepath.Join("/dev/mapper", name) }

// MakeNode makes /dev/mapper/<name> lead to the device dev. What is there already and leads to dev is kept; what leads
// elsewhere is a leftover and is replaced. It makes a link to ../dm-<minor>, as udevd does for devices that are left to it;
// where /dev has no such node, as in a container with a /dev of its own, it makes a block node, with mode 0600.
//
// The kernel makes /dev/dm-<minor> where /dev is a devtmpfs.
func (c *Control) MakeNode(name string, dev DevNum) error {
	if err := c.nodes.make(name, dev); err != nil {
		return &OpError{Op: "make node", Device: name, Err: err}
	}
	return nil
}

// RemoveNode removes /dev/mapper/<name>. It is no error if it is not there. A device that still exists keeps on existing.
func (c *Control) RemoveNode(name string) error {
	err := c.nodes.remove(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &OpError{Op: "remove node", Device: name, Err: err}
	}
	return nil
}

func (n nodes) path(name string) string { return filepath.Join(n.dev, unix.DM_DIR, name) }

func (n nodes) make(name string, dev DevNum) error {
	if err := checkNode(name); err != nil {
		return err
	}
	path := n.path(name)
	if leadsTo(path, dev) {
		return nil
	}
	err := n.create(path, dev)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		err = n.create(path, dev)
	}
	switch {
	case !errors.Is(err, fs.ErrExist):
		return err
	case leadsTo(path, dev): // another was faster
		return nil
	}
	if err := n.remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return n.create(path, dev)
}

// create makes a node or a link that is not there yet.
func (n nodes) create(path string, dev DevNum) error {
	kernels := fmt.Sprintf("dm-%d", dev.Minor)
	if leadsTo(filepath.Join(n.dev, kernels), dev) {
		return os.Symlink("../"+kernels, path)
	}
	return mknod(path, unix.S_IFBLK|0o600, dev)
}

func (n nodes) remove(name string) error {
	if err := checkNode(name); err != nil {
		return err
	}
	path := n.path(name)
	if err := unix.Unlink(path); err != nil { // not os.Remove: a directory is nothing of ours
		return &os.PathError{Op: "unlink", Path: path, Err: err}
	}
	return nil
}

// checkNode returns an error if name is not a device's.
func checkNode(name string) error {
	if name == "" {
		return invalid("no name")
	}
	return (&request{name: name}).check()
}

// leadsTo reports whether path is, or links to, the block device dev.
func leadsTo(path string, dev DevNum) bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && devNum(uint64(st.Rdev)) == dev //nolint:unconvert // 32 bits on mips
}

func mknod(path string, mode uint32, dev DevNum) error {
	if err := unix.Mknod(path, mode, int(unix.Mkdev(dev.Major, dev.Minor))); err != nil {
		return &os.PathError{Op: "mknod", Path: path, Err: err}
	}
	return nil
}

// openControl opens the control device, and makes its node if it is missing.
func (n nodes) openControl(flags int) (*os.File, error) {
	path := n.path(unix.DM_CONTROL_NODE)
	open := func() (int, error) { return unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|flags, 0) }
	fd, err := open()
	if errors.Is(err, unix.ENOENT) {
		if err := n.makeControl(path); err != nil {
			return nil, err
		}
		fd, err = open()
	}
	switch {
	case errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO):
		return nil, noDeviceMapper(err) // a node without a driver
	case err != nil:
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// makeControl makes the node of the control device, whose number is the kernel's choice.
func (n nodes) makeControl(path string) error {
	minor, err := n.numberOf("misc", "device-mapper")
	if errors.Is(err, fs.ErrNotExist) {
		return noDeviceMapper(err)
	}
	if err != nil {
		return err
	}
	major, err := n.numberOf("devices", "misc")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	err = mknod(path, unix.S_IFCHR|0o600, DevNum{major, minor})
	if errors.Is(err, fs.ErrExist) {
		return nil // somebody else has made it meanwhile
	}
	return err
}

// numberOf returns the number before a name in a file of /proc whose lines are a number and a name.
func (n nodes) numberOf(file, name string) (uint32, error) {
	path := filepath.Join(n.proc, file)
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) != 2 || fields[1] != name {
			continue
		}
		number, err := strconv.ParseUint(fields[0], 10, 32)
		return uint32(number), err
	}
	return 0, fmt.Errorf("%s in %s: %w", name, path, fs.ErrNotExist)
}

// noDeviceMapper returns the error of a kernel that has no device mapper.
func noDeviceMapper(err error) error {
	return fmt.Errorf("%w: this kernel has no device mapper: the module dm-mod (CONFIG_BLK_DEV_DM) is neither built in nor loaded: %w",
		errors.ErrUnsupported, err)
}
