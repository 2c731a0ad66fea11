package guest

import (
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// A cpio writes an archive in the format that the kernel takes as an initramfs
// (Documentation/driver-api/early-userspace/buffer-format.rst). Its methods do
// nothing after an error, which close returns.
type cpio struct {
	w    io.Writer
	made map[string]bool // names in the archive
	err  error
}

func newCPIO(w io.Writer) *cpio { return &cpio{w: w, made: map[string]bool{}} }

// copyFile adds a file of the host, and the directories above its name.
func (c *cpio) copyFile(name, from string) {
	data, err := os.ReadFile(from)
	if err != nil && c.err == nil {
		c.err = err
	}
	c.parents(name)
	c.entry(name, unix.S_IFREG|0o755, 0, data)
}

// device adds a character device.
func (c *cpio) device(name string, number uint64) {
	c.parents(name)
	c.entry(name, unix.S_IFCHR|0o600, number, nil)
}

func (c *cpio) dir(name string) {
	c.parents(name)
	c.entry(name, unix.S_IFDIR|0o755, 0, nil)
}

func (c *cpio) parents(name string) {
	if d := path.Dir(strings.TrimPrefix(name, "/")); d != "." && !c.made[d] {
		c.dir(d)
	}
}

// entry adds a file of the newc format. The inode number serves hard links
// alone, and there are none.
func (c *cpio) entry(name string, mode uint32, device uint64, data []byte) {
	name = strings.TrimPrefix(name, "/")
	c.made[name] = true
	const links = 1
	fields := []any{
		len(c.made), mode, 0, 0, links, 0, len(data), 0, 0,
		unix.Major(device), unix.Minor(device), len(name) + 1, 0,
	}
	c.write(fmt.Appendf(nil, "070701"+strings.Repeat("%08x", len(fields))+"%s\x00", append(fields, name)...))
	c.write(data)
}

// write writes data and what fills it up to four bytes.
func (c *cpio) write(data []byte) {
	if c.err == nil {
		_, c.err = c.w.Write(data)
	}
	if rest := len(data) % 4; rest != 0 && c.err == nil {
		_, c.err = c.w.Write(make([]byte, 4-rest))
	}
}

// close ends the archive.
func (c *cpio) close() error {
	c.entry("TRAILER!!!", 0, 0, nil)
	return c.err
}
