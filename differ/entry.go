package differ

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// The names by which a layer says what is not there any more: .wh.NAME for an entry, and for all that a directory has below.
// https://github.com/opencontainers/image-spec/blob/main/layer.md#whiteouts
const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

const (
	capability    = "security.capability"
	capabilityTag = "SCHILY.xattr." + capability
	// capabilitySize is more than any version of struct vfs_cap_data has.
	capabilitySize = 64
)

// small is the size up to which the walk reads a file at once. A larger one is read by the tar stream, and the walk waits.
const small = 128 << 10

// An entry is one of a tar stream with its content: what was read, or a file to read.
type entry struct {
	header *tar.Header
	data   []byte
	file   *file
}

// release lets the walk go on, which waits for whoever reads the entry's file.
func (e entry) release() {
	if e.file != nil {
		close(e.file.released)
	}
}

// A file is open, and to be read as the stat says. The walk closes it when it is released, before it tells the Source to go on: a Source
// may show a file system that has to be unmounted when it is done.
type file struct {
	fd       int
	stat     *unix.Stat_t
	released chan struct{}
}

type inode struct{ dev, ino uint64 }

// A link is the name of a file with several, by which the others refer to it, and its capabilities.
type link struct{ name, capability string }

// A lister makes entries of changes. It is the walk's alone.
type lister struct {
	entries chan<- entry
	bound   *time.Time
	links   map[inode]link
}

// add sends what says c.
func (l *lister) add(ctx context.Context, c Change) error {
	dir, name := path.Split(c.Path)
	if strings.HasPrefix(name, whiteout) {
		return fmt.Errorf("/%s: in a layer a name that begins with %q is a deletion: rename it: %w", c.Path, whiteout, errdefs.ErrInvalidArgument)
	}
	if c.Stat == nil {
		return l.send(ctx, entry{header: deletion(dir + whiteout + name)})
	}
	h := l.header(c)
	if h == nil {
		return nil
	}
	err := l.addContent(ctx, c, name, h)
	if err == nil && c.Opaque {
		err = l.send(ctx, entry{header: deletion(c.Path + "/" + opaque)})
	}
	return err
}

// deletion is as containerd writes it, time and mode.
func deletion(name string) *tar.Header {
	zero := time.Unix(0, 0).UTC()
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, ModTime: zero, AccessTime: zero, ChangeTime: zero}
}

// types are those of a tar entry by those of a file. What has none, a socket, is no part of a layer.
var types = map[uint32]byte{
	unix.S_IFREG: tar.TypeReg, unix.S_IFDIR: tar.TypeDir, unix.S_IFLNK: tar.TypeSymlink,
	unix.S_IFCHR: tar.TypeChar, unix.S_IFBLK: tar.TypeBlock, unix.S_IFIFO: tar.TypeFifo,
}

// header returns the header of what is there, without what has to be read, or nil for what a layer leaves out. There are no names of
// users in it, which would be those of the host, and its time has whole seconds.
func (l *lister) header(c Change) *tar.Header {
	flag, ok := types[c.Stat.Mode&unix.S_IFMT]
	if !ok {
		return nil
	}
	h := &tar.Header{
		Format:   tar.FormatPAX,
		Typeflag: flag,
		Name:     c.Path,
		Mode:     int64(c.Stat.Mode & 0o7777),
		Uid:      int(c.Stat.Uid),
		Gid:      int(c.Stat.Gid),
		ModTime:  time.Unix(c.Stat.Mtim.Sec, 0),
	}
	if l.bound != nil && h.ModTime.After(*l.bound) {
		h.ModTime = l.bound.Truncate(time.Second)
	}
	switch flag {
	case tar.TypeDir:
		h.Name += "/"
	case tar.TypeReg:
		h.Size = c.Stat.Size
	case tar.TypeChar, tar.TypeBlock:
		h.Devmajor, h.Devminor = int64(unix.Major(c.Stat.Rdev)), int64(unix.Minor(c.Stat.Rdev))
	}
	return h
}

// addContent sends an entry with what it contains. A further name of a file refers to the first.
func (l *lister) addContent(ctx context.Context, c Change, name string, h *tar.Header) error {
	i := inode{c.Stat.Dev, c.Stat.Ino}
	if first, ok := l.links[i]; ok && h.Typeflag != tar.TypeDir {
		h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first.name, 0
		setCapability(h, first.capability)
		return l.send(ctx, entry{header: h})
	}
	if c.Stat.Nlink > 1 && h.Typeflag != tar.TypeDir {
		defer func() { l.links[i] = link{h.Name, h.PAXRecords[capabilityTag]} }()
	}
	if h.Typeflag == tar.TypeReg {
		return l.addFile(ctx, c, name, h)
	}
	if h.Typeflag == tar.TypeSymlink {
		target, err := readlink(c.Dir, name, c.Stat.Size)
		if err != nil {
			return whileRead(c.Path, err)
		}
		h.Linkname = target
	}
	buf := make([]byte, capabilitySize)
	n, err := unix.Lgetxattr(procPath(c.Dir)+"/"+name, capability, buf)
	if err := readCapability(h, buf, n, err); err != nil {
		return whileRead(c.Path, err)
	}
	return l.send(ctx, entry{header: h})
}

// send waits for room, and where there is a file to be read, until it is.
func (l *lister) send(ctx context.Context, e entry) error {
	select {
	case l.entries <- e:
	case <-ctx.Done():
		return ctx.Err()
	}
	if e.file != nil {
		<-e.file.released // by the tar stream, or by stop, which takes what that left
	}
	return nil
}

// addFile sends a regular file, a small one with its content.
func (l *lister) addFile(ctx context.Context, c Change, name string, h *tar.Header) (err error) {
	f, err := open(c, name)
	if err != nil {
		return whileRead(c.Path, err)
	}
	defer func() { err = errors.Join(err, unix.Close(f.fd)) }()
	buf := make([]byte, capabilitySize)
	n, err := unix.Fgetxattr(f.fd, capability, buf)
	if err := readCapability(h, buf, n, err); err != nil {
		return whileRead(c.Path, err)
	}
	if h.Size > small {
		return l.send(ctx, entry{header: h, file: f})
	}
	data := make([]byte, h.Size)
	for rest := data; len(rest) > 0; {
		n, err := f.read(rest)
		if err != nil {
			return whileRead(c.Path, err)
		}
		rest = rest[n:]
	}
	if err := f.unchanged(); err != nil {
		return whileRead(c.Path, err)
	}
	return l.send(ctx, entry{header: h, data: data})
}

// errChanged says that a file is not what it was when the walk came by it.
var errChanged = errors.New("it is another than before")

// whileRead gives an error that comes of a change its class. All others, such as a disk's, stay.
func whileRead(name string, err error) error {
	for _, sign := range []error{errChanged, unix.ENOENT, unix.ESTALE, unix.EAGAIN} {
		if errors.Is(err, sign) {
			return fmt.Errorf("/%s changed while it was read: pause the container, or try again: %w", name, errdefs.ErrAborted)
		}
	}
	return fmt.Errorf("/%s: %w", name, err)
}

// open opens the file that c tells of, and no other: what took its place may be a device, which to open has effects. So it is looked at
// first, by a descriptor that keeps it.
func open(c Change, name string) (*file, error) {
	found, err := unix.Openat(c.Dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(found) }() // it has no data
	f := &file{fd: found, stat: c.Stat, released: make(chan struct{})}
	if err := f.unchanged(); err != nil {
		return nil, err
	}
	const flags = unix.O_RDONLY | unix.O_NONBLOCK | unix.O_CLOEXEC // not to wait for the lease of another process
	link := procPath(found)
	f.fd, err = unix.Open(link, flags|unix.O_NOATIME, 0)
	if errors.Is(err, unix.EPERM) { // only an owner may leave the access time alone
		f.fd, err = unix.Open(link, flags, 0)
	}
	return f, err
}

// procPath returns a path to what a descriptor is of.
func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// read reads what comes next, at least a byte: what ends early has become shorter.
func (f *file) read(p []byte) (int, error) {
	for {
		n, err := unix.Read(f.fd, p)
		switch {
		case errors.Is(err, unix.EINTR):
		case err == nil && n == 0:
			return 0, errChanged
		default:
			return n, err
		}
	}
}

// unchanged returns errChanged if the open file is another than the walk came by, or has been written to since.
func (f *file) unchanged() error {
	var now unix.Stat_t
	if err := unix.Fstat(f.fd, &now); err != nil {
		return err
	}
	was := f.stat
	if now.Ino != was.Ino || now.Size != was.Size || now.Mtim != was.Mtim || now.Ctim != was.Ctim || now.Mode != was.Mode {
		return errChanged
	}
	return nil
}

// readlink returns the target of a link, whose length is size, or on some file systems 0.
func readlink(dir int, name string, size int64) (string, error) {
	buf := make([]byte, max(size, unix.PathMax)+1)
	n, err := unix.Readlinkat(dir, name, buf)
	if errors.Is(err, unix.EINVAL) {
		return "", errChanged // it is no link
	}
	if err != nil {
		return "", err
	}
	if n == len(buf) {
		return "", errChanged
	}
	return string(buf[:n]), nil
}

// readCapability puts the first n bytes of buf, or nothing where the file has no capabilities, into the header.
func readCapability(h *tar.Header, buf []byte, n int, err error) error {
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", capability, err)
	}
	setCapability(h, string(buf[:n]))
	return nil
}

func setCapability(h *tar.Header, value string) {
	if value != "" {
		h.PAXRecords = map[string]string{capabilityTag: value}
	}
}
