package integration

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// changes are what a changer can do. One that finds nothing to do it to returns errNothing.
var changes = map[string]func(*changer) error{
	"create":                    (*changer).create,
	"create sparse":             (*changer).createSparse,
	"create empty directory":    func(c *changer) error { _, err := c.mkdir(); return err },
	"create tree":               (*changer).createTree,
	"write at the same time":    (*changer).writeUnseen,
	"append":                    (*changer).append,
	"truncate":                  (*changer).truncate,
	"chmod":                     (*changer).chmod,
	"chmod directory":           (*changer).chmodDirectory,
	"chown":                     (*changer).chown,
	"chown directory":           (*changer).chownDirectory,
	"capability":                (*changer).capability,
	"no capability":             (*changer).noCapability,
	"time":                      func(c *changer) error { return c.setTime(c.file()) },
	"time of directory":         func(c *changer) error { return c.setTime(c.directory()) },
	"rename":                    (*changer).rename,
	"rename onto another":       (*changer).renameOnto,
	"rename directory":          (*changer).renameDirectory,
	"rename new directory":      (*changer).renameNewDirectory,
	"delete":                    func(c *changer) error { return os.Remove(c.file()) },
	"delete tree":               func(c *changer) error { return os.RemoveAll(c.tree()) },
	"delete, re-create":         (*changer).recreate,
	"delete, re-create as is":   (*changer).recreateAsIs,
	"create, delete":            (*changer).createDelete,
	"file to directory":         (*changer).fileToDirectory,
	"directory to file":         (*changer).directoryToFile,
	"directory to symlink":      (*changer).directoryToSymlink,
	"directory made again":      (*changer).makeAgain,
	"hard link":                 (*changer).link,
	"hard link of a new file":   (*changer).linkNew,
	"write to a link":           (*changer).writeToLink,
	"symlink":                   (*changer).symlink,
	"symlink to another target": (*changer).resymlink,
	"fifo":                      func(c *changer) error { return c.mknod(unix.S_IFIFO, 0) },
	"character device":          func(c *changer) error { return c.mknod(unix.S_IFCHR, unix.Mkdev(1, uint32(c.rng.IntN(9)+1))) },
	"block device":              func(c *changer) error { return c.mknod(unix.S_IFBLK, unix.Mkdev(7, uint32(c.rng.IntN(300)))) },
	"socket":                    func(c *changer) error { return c.mknod(unix.S_IFSOCK, 0) },
}

var errNothing = errors.New("nothing to change")

func (c *changer) create() error { return c.write(c.name()) }

func (c *changer) createSparse() error {
	name := c.name()
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte("between two holes"), 300<<10)
	c.added(name)
	return errors.Join(err, f.Truncate(700<<10), f.Close())
}

func (c *changer) mkdir() (string, error) {
	name := c.name()
	defer c.added(name)
	return name, os.Mkdir(name, fs.FileMode(0o700+c.rng.IntN(0o100)))
}

func (c *changer) createTree() error {
	dir, err := c.mkdir()
	sub := filepath.Join(dir, "sub")
	return errors.Join(err, c.write(filepath.Join(dir, "a")), os.Mkdir(sub, 0o755), c.write(filepath.Join(sub, "b")),
		os.Symlink("../a", filepath.Join(sub, "c")), os.Mkdir(filepath.Join(sub, "empty"), 0o711))
}

// seconds is a time without a fraction, as files have that were unpacked.
func (c *changer) seconds() unix.Timespec {
	return unix.Timespec{Sec: time.Date(2020, 1, 1, 0, 0, c.rng.IntN(1<<20), 0, time.UTC).Unix()}
}

func setTimes(name string, ts unix.Timespec) error {
	return unix.UtimesNanoAt(unix.AT_FDCWD, name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

func (c *changer) setTime(name string) error {
	if name == "" {
		return errNothing
	}
	return setTimes(name, c.seconds())
}

// overwrite writes some bytes into a file that has them.
func (c *changer) overwrite(name string) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	b, at := make([]byte, 1), c.rng.Int64N(info.Size())
	_, err = f.ReadAt(b, at)
	b[0]++
	_, writeErr := f.WriteAt(b, at)
	return errors.Join(err, writeErr, f.Close())
}

// writeUnseen changes a byte, and neither size nor time. The time has no fraction: of others the walking differ sees only that they
// are equal, see TestDiffFinerThanWalking.
func (c *changer) writeUnseen() error {
	name := c.pick(c.files, func(i fs.FileInfo) bool { return hasContent(1<<20)(i) && i.ModTime().Nanosecond() == 0 })
	if name == "" {
		return errNothing
	}
	info, err := os.Stat(name)
	if err != nil {
		return err
	}
	return errors.Join(c.overwrite(name), setTimes(name, unix.Timespec{Sec: info.ModTime().Unix()}))
}

func (c *changer) append() error {
	f, err := os.OpenFile(c.regular(), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.Write([]byte("appended"))
	return errors.Join(err, f.Close())
}

func (c *changer) truncate() error {
	name := c.regular()
	info, err := os.Stat(name)
	if err != nil {
		return err
	}
	return os.Truncate(name, c.rng.Int64N(info.Size()))
}

func (c *changer) chmod() error {
	return unix.Chmod(c.regular(), uint32(c.rng.IntN(0o10000)))
}

func (c *changer) chmodDirectory() error {
	return unix.Chmod(c.directory(), uint32(c.rng.IntN(0o10000)))
}

func (c *changer) chown() error { return os.Lchown(c.file(), c.rng.IntN(1<<20), c.rng.IntN(1<<20)) }

func (c *changer) chownDirectory() error {
	return os.Lchown(c.directory(), c.rng.IntN(1<<16), c.rng.IntN(1<<16))
}

func (c *changer) capability() error {
	cap := []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	cap[4] = byte(c.rng.IntN(256))
	return unix.Setxattr(c.regular(), "security.capability", cap, 0)
}

func (c *changer) noCapability() error {
	var capable []string
	for _, rel := range c.files {
		if _, err := unix.Lgetxattr(c.at(rel), "security.capability", nil); err == nil {
			capable = append(capable, rel)
		}
	}
	name := c.pick(capable, func(i fs.FileInfo) bool { return i.Mode().IsRegular() })
	if name == "" {
		return errors.Join(c.capability(), errNothing)
	}
	return unix.Removexattr(name, "security.capability")
}

func (c *changer) rename() error {
	from, to := c.file(), c.name()
	err := os.Rename(from, to)
	c.added(to)
	return err
}

func (c *changer) renameOnto() error {
	from, to := c.regular(), c.regular()
	return os.Rename(from, to)
}

// renameDirectory does as mv does, which copies what is below on an overlay.
func (c *changer) renameDirectory() error {
	from := c.tree()
	to := c.name()
	if from == "" || strings.HasPrefix(to, from+"/") {
		return errNothing
	}
	if err := os.Rename(from, to); !errors.Is(err, unix.EXDEV) {
		c.added(to)
		return err
	}
	if _, err := command(background, nil, "mv", from, to); err != nil {
		return err
	}
	c.added(to)
	return nil
}

func (c *changer) renameNewDirectory() error {
	dir, err := c.mkdir()
	if err != nil {
		return err
	}
	to := c.name()
	if strings.HasPrefix(to, dir+"/") {
		return errNothing
	}
	err = errors.Join(c.write(filepath.Join(dir, "moved")), os.Rename(dir, to))
	c.added(to)
	return err
}

func (c *changer) recreate() error {
	name := c.file()
	return errors.Join(os.Remove(name), c.write(name))
}

// recreateAsIs leaves nothing of a file but its content, mode, owner and time.
func (c *changer) recreateAsIs() error {
	name := c.pick(c.files, hasContent(1<<20))
	var st unix.Stat_t
	b, err := os.ReadFile(name)
	if err := errors.Join(err, unix.Stat(name, &st)); err != nil {
		return err
	}
	return errors.Join(os.Remove(name), os.WriteFile(name, b, 0o600), os.Chown(name, int(st.Uid), int(st.Gid)),
		unix.Chmod(name, st.Mode&0o7777), setTimes(name, unix.Timespec{Sec: st.Mtim.Sec}))
}

func (c *changer) createDelete() error {
	name := c.name()
	return errors.Join(os.WriteFile(name, c.bytes(5000), 0o600), os.Remove(name))
}

func (c *changer) fileToDirectory() error {
	name := c.file()
	err := errors.Join(os.Remove(name), os.Mkdir(name, 0o755))
	c.added(name)
	return errors.Join(err, c.write(filepath.Join(name, "inside")))
}

func (c *changer) directoryToFile() error {
	name := c.tree()
	if name == "" {
		return errNothing
	}
	return errors.Join(os.RemoveAll(name), c.write(name))
}

func (c *changer) directoryToSymlink() error {
	name := c.tree()
	if name == "" {
		return errNothing
	}
	err := errors.Join(os.RemoveAll(name), os.Symlink(c.target(), name))
	c.added(name)
	return err
}

// makeAgain removes a directory and makes it again, with some of what was in it.
func (c *changer) makeAgain() error {
	name := c.tree()
	if name == "" {
		return errNothing
	}
	entries, err := os.ReadDir(name)
	err = errors.Join(err, os.RemoveAll(name), os.Mkdir(name, 0o750))
	for i, e := range entries {
		if again := filepath.Join(name, e.Name()); i%2 == 0 && e.IsDir() {
			err = errors.Join(err, os.Mkdir(again, 0o755))
		} else if i%2 == 0 {
			err = errors.Join(err, c.write(again))
		}
	}
	return errors.Join(err, c.write(filepath.Join(name, "after all")))
}

func (c *changer) link() error {
	name := c.name()
	err := os.Link(c.regular(), name)
	c.added(name)
	return err
}

func (c *changer) linkNew() error {
	a, b := c.name(), c.name()
	err := errors.Join(c.write(a), os.Link(a, b))
	c.added(b)
	return err
}

func (c *changer) writeToLink() error {
	name := c.pick(c.files, func(i fs.FileInfo) bool {
		return hasContent(1<<20)(i) && i.Sys().(*syscall.Stat_t).Nlink > 1
	})
	if name == "" {
		return errors.Join(c.linkNew(), errNothing)
	}
	return c.overwrite(name)
}

// target returns what a symlink may have: absolute, relative or dangling.
func (c *changer) target() string {
	switch c.rng.IntN(3) {
	case 0:
		return "/" + strings.TrimPrefix(c.file(), c.dir+"/")
	case 1:
		return path.Base(c.file())
	default:
		return fmt.Sprint("../nowhere/", c.rng.IntN(1000))
	}
}

func (c *changer) symlink() error {
	name := c.name()
	err := os.Symlink(c.target(), name)
	c.added(name)
	return err
}

func (c *changer) resymlink() error {
	name := c.pick(c.files, func(i fs.FileInfo) bool { return i.Mode().Type() == fs.ModeSymlink })
	if name == "" {
		return errNothing
	}
	var st unix.Stat_t
	err := unix.Lstat(name, &st)
	return errors.Join(err, os.Remove(name), os.Symlink(c.target(), name), setTimes(name, unix.Timespec{Sec: st.Mtim.Sec}))
}

func (c *changer) mknod(kind uint32, dev uint64) error {
	name := c.name()
	err := unix.Mknod(name, kind|uint32(c.rng.IntN(0o1000)), int(dev))
	c.added(name)
	return err
}
