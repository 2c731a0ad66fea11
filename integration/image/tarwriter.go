package image

import (
	"archive/tar"
	"fmt"
	"io"
	"math/rand/v2"
	"path"
	"strings"
	"time"
)

// Names by which a layer deletes, from the image specification.
const (
	whiteoutPrefix = ".wh."
	opaqueMarker   = ".wh..wh..opq"
)

// tarWriter writes the entries of a layer. Its methods take no mode, owner or
// time unless that is the point: option functions change the header.
type tarWriter struct{ *tar.Writer }

type option func(*tar.Header)

func newTarWriter(w io.Writer) *tarWriter {
	return &tarWriter{tar.NewWriter(w)}
}

func mode(m int64) option { return func(h *tar.Header) { h.Mode = m } }

func owner(uid, gid int) option {
	return func(h *tar.Header) { h.Uid, h.Gid = uid, gid }
}

func mtime(t time.Time) option { return func(h *tar.Header) { h.ModTime = t } }

// xattr adds an extended attribute, in the record that GNU tar and containerd use.
func xattr(name, value string) option {
	return func(h *tar.Header) {
		if h.PAXRecords == nil {
			h.PAXRecords = make(map[string]string)
		}
		h.PAXRecords["SCHILY.xattr."+name] = value
	}
}

func (w *tarWriter) entry(h *tar.Header, options []option) error {
	// PAX is the only format that holds long names, nanoseconds and attributes.
	h.Format = tar.FormatPAX
	h.ModTime = created
	for _, o := range options {
		o(h)
	}
	if err := w.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	return nil
}

func (w *tarWriter) file(name string, r io.Reader, size int64, options ...option) error {
	if err := w.entry(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644}, options); err != nil {
		return err
	}
	_, err := io.Copy(w, r)
	return err
}

func (w *tarWriter) text(name, content string, options ...option) error {
	return w.file(name, strings.NewReader(content), int64(len(content)), options...)
}

// noise writes a file of size bytes that do not compress, the same for the
// same name.
func (w *tarWriter) noise(name string, size int64) error {
	var seed [32]byte
	copy(seed[:], name)
	return w.file(name, io.LimitReader(rand.NewChaCha8(seed), size), size)
}

func (w *tarWriter) dir(name string, options ...option) error {
	return w.entry(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755}, options)
}

func (w *tarWriter) symlink(name, target string, options ...option) error {
	return w.entry(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, options)
}

// link makes name a hard link to target, an earlier entry of the same layer.
func (w *tarWriter) link(name, target string) error {
	return w.entry(&tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}, nil)
}

func (w *tarWriter) device(name string, kind byte, major, minor int64, options ...option) error {
	h := &tar.Header{Typeflag: kind, Name: name, Devmajor: major, Devminor: minor, Mode: 0o600}
	return w.entry(h, options)
}

// whiteout deletes name of a lower layer.
func (w *tarWriter) whiteout(name string) error {
	dir, base := path.Split(name)
	return w.text(dir+whiteoutPrefix+base, "")
}

// opaque hides what lower layers have in the directory name.
func (w *tarWriter) opaque(name string) error {
	return w.text(name+"/"+opaqueMarker, "")
}

// all runs the steps in order up to the first error.
func all(steps ...error) error {
	for _, err := range steps {
		if err != nil {
			return err
		}
	}
	return nil
}
