package overlayaufs

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"
)

const capability = "security.capability"

// tTar returns what Changes tells of two chains as a layer.
func tTar(t *testing.T, b *Backend, lower, upper []Content, writable bool) ([]byte, error) {
	t.Helper()
	from, err := b.Mounts(t.Context(), lower, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	to, err := b.Mounts(t.Context(), upper, writable, nil)
	if err != nil {
		t.Fatal(err)
	}
	return tTarOf(t, b, from, to)
}

func tTarOf(t *testing.T, b *Backend, lower, upper []mount.Mount) ([]byte, error) {
	t.Helper()
	var buf bytes.Buffer
	w := &tarWriter{Writer: tar.NewWriter(&buf), links: map[[2]uint64]string{}}
	err := b.Changes(t.Context(), lower, upper, nil, w.change)
	return buf.Bytes(), errors.Join(err, w.Close())
}

// A tarWriter writes changes as entries of a layer, with times to the nanosecond.
type tarWriter struct {
	*tar.Writer
	links map[[2]uint64]string
}

func (w *tarWriter) change(c Change) error {
	dir, base := path.Split(c.Path)
	if c.Stat == nil {
		return w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: dir + whPrefix + base})
	}
	st := c.Stat
	h := &tar.Header{
		Name: c.Path, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()), Format: tar.FormatPAX,
		Devmajor: int64(unix.Major(st.Rdev)), Devminor: int64(unix.Minor(st.Rdev)),
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFSOCK:
		return nil
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, c.Path+"/"
		if err := w.WriteHeader(h); err != nil || !c.Opaque {
			return err
		}
		return w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: h.Name + opaqueName})
	case unix.S_IFCHR:
		h.Typeflag = tar.TypeChar
	case unix.S_IFBLK:
		h.Typeflag = tar.TypeBlock
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFLNK:
		target := make([]byte, 4096)
		n, err := unix.Readlinkat(c.Dir, base, target)
		if err != nil {
			return err
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, string(target[:n])
	}
	value := make([]byte, 64)
	if n, err := unix.Lgetxattr(entryPath(c.Dir, base), capability, value); err == nil {
		h.PAXRecords = map[string]string{"SCHILY.xattr." + capability: string(value[:n])} // of a link too: the applier takes it
	}
	if first, ok := w.links[[2]uint64{st.Dev, st.Ino}]; ok {
		h.Typeflag, h.Linkname = tar.TypeLink, first
		return w.WriteHeader(h)
	}
	if st.Nlink > 1 {
		w.links[[2]uint64{st.Dev, st.Ino}] = c.Path
	}
	return w.file(c, h)
}

// file writes an entry, with content if it is a regular file.
func (w *tarWriter) file(c Change, h *tar.Header) error {
	if c.Stat.Mode&unix.S_IFMT != unix.S_IFREG {
		return w.WriteHeader(h)
	}
	fd, err := unix.Openat(c.Dir, path.Base(c.Path), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), c.Path)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Ino != c.Stat.Ino || st.Size != c.Stat.Size {
		return fs.ErrInvalid // of another file
	}
	h.Typeflag, h.Size = tar.TypeReg, st.Size
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	return err
}
