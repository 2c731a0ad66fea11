package differ

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"path"
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

// small is the size up to which a file's content goes with its header. That of a larger one follows in pieces.
const small = 128 << 10

const (
	// readSize is the size of a piece.
	readSize = 256 << 10
	// readAhead is how many pieces there are.
	readAhead = 4
)

// An entry is one of a tar stream with its content, or, without a header, a piece of the content of the one before.
type entry struct {
	header *tar.Header
	data   []byte
	free   chan<- []byte // where data goes when it is written, or nil
}

// A lister makes entries of changes. It is the walk's alone, and all that it reads it reads itself: a tree whose disk does not answer
// holds up nobody else.
type lister struct {
	entries chan<- entry
	bound   *time.Time
	links   links
	free    chan []byte // pieces
}

func newLister(entries chan<- entry, bound *time.Time) *lister {
	l := &lister{entries: entries, bound: bound, links: make(links), free: make(chan []byte, readAhead)}
	for range readAhead {
		l.free <- nil // made when it is needed: most layers have no large file
	}
	return l
}

// add sends what says c.
func (l *lister) add(ctx context.Context, c Change) error {
	dir, name := path.Split(c.Path)
	if strings.HasPrefix(name, whiteout) {
		return fmt.Errorf("/%s: in a layer a name that begins with %q is a deletion: rename it: %w", c.Path, whiteout, errdefs.ErrInvalidArgument)
	}
	if err := checkLength(c); err != nil {
		return err
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

// checkLength refuses what nobody could unpack, as no path is so long. Whoever keeps the place where he is can make it, name by name.
func checkLength(c Change) error {
	length := len(c.Path)
	switch {
	case c.Stat == nil:
		length += len(whiteout)
	case c.Opaque:
		length += len("/" + opaque)
	}
	if length < unix.PathMax {
		return nil
	}
	const shown = 60
	return fmt.Errorf("/%q...%q: a path of %d bytes cannot be unpacked, %d are too many: move it up or remove it: %w",
		c.Path[:shown], c.Path[len(c.Path)-shown:], length, unix.PathMax, errdefs.ErrInvalidArgument)
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
	first, err := l.links.find(c)
	if err != nil {
		return whileRead(c.Path, err)
	}
	if first != nil {
		h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first.name, 0
		setCapability(h, first.capability)
		return l.send(ctx, entry{header: h})
	}
	if h.Typeflag == tar.TypeReg {
		err = l.addFile(ctx, c, name, h)
	} else {
		err = l.addOther(ctx, c, name, h)
	}
	if err == nil {
		l.links.add(c, h)
	}
	return err
}

// send waits for room.
func (l *lister) send(ctx context.Context, e entry) error {
	if err := ctx.Err(); err != nil { // there may be room all the same, and nobody who takes it
		return err
	}
	select {
	case l.entries <- e:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// addOther sends what is no regular file.
func (l *lister) addOther(ctx context.Context, c Change, name string, h *tar.Header) (err error) {
	f, err := find(c, name)
	if err != nil {
		return whileRead(c.Path, err)
	}
	defer func() { err = errors.Join(err, unix.Close(f.fd)) }()
	if h.Typeflag == tar.TypeSymlink {
		if h.Linkname, err = f.readlink(); err != nil {
			return whileRead(c.Path, err)
		}
	}
	buf := make([]byte, capabilitySize)
	n, err := unix.Getxattr(procPath(f.fd), capability, buf)
	if err := readCapability(h, buf, n, err); err != nil {
		return whileRead(c.Path, err)
	}
	return l.send(ctx, entry{header: h})
}

// addFile sends a regular file.
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
		return l.addLarge(ctx, f, h)
	}
	data := make([]byte, h.Size)
	if err := f.readFull(data); err != nil {
		return whileRead(c.Path, err)
	}
	if err := f.unchanged(); err != nil {
		return whileRead(c.Path, err)
	}
	return l.send(ctx, entry{header: h, data: data})
}

// addLarge sends a file in pieces. It must be as long as the header says, and the same at the end as at the begin.
func (l *lister) addLarge(ctx context.Context, f *file, h *tar.Header) error {
	left, name := h.Size, h.Name // the header is the tar stream's once it is sent
	if err := l.send(ctx, entry{header: h}); err != nil {
		return err
	}
	for left > 0 {
		piece, err := l.piece(ctx)
		if err != nil {
			return err
		}
		piece = piece[:min(left, readSize)]
		if err := f.readFull(piece); err != nil {
			return whileRead(name, err)
		}
		left -= int64(len(piece))
		if err := l.send(ctx, entry{data: piece, free: l.free}); err != nil {
			return err
		}
	}
	if err := f.unchanged(); err != nil {
		return whileRead(name, err)
	}
	return nil
}

// piece returns one that nobody writes any more.
func (l *lister) piece(ctx context.Context) ([]byte, error) {
	select {
	case piece := <-l.free:
		if piece == nil {
			piece = make([]byte, readSize)
		}
		return piece, ctx.Err()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
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
