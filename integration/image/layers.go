package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Names of the images, as containerd lists them.
const (
	DebianName = "docker.io/lamina/debian:test"
	SmallName  = "docker.io/lamina/small:test"
)

// Big is the path of the large file in a Debian image, BigSize its length in
// bytes and BigSHA256 what sha256sum prints for it.
const (
	Big       = "lamina/big"
	BigSize   = 200 << 20
	BigSHA256 = "06a9d20c51e700af64c6ec54701b667396cebf9d15a0e73717c74ad8059a9132"
)

const hello = `#!/bin/sh
# What a container of this image runs when it is told nothing else.
. /etc/os-release
echo "hello from $PRETTY_NAME, on $(uname -sr)"
`

// Sources are the files that a Debian image is made of.
type Sources struct {
	Rootfs   string   // a tar of a Debian root directory
	Packages []string // tars of the files of Debian packages
}

// Debian writes a Debian image of ten layers to w.
func Debian(w io.Writer, src Sources) error {
	return debian(w, src, BigSize)
}

func debian(w io.Writer, src Sources, bigSize int64) error {
	layers := []layer{
		{"base", ocispec.MediaTypeImageLayerGzip, func(tw *tarWriter) error {
			return copyTar(tw, src.Rootfs, identity)
		}},
		{"packages", ocispec.MediaTypeImageLayerZstd, func(tw *tarWriter) error {
			for _, p := range src.Packages {
				if err := copyTar(tw, p, usrMerged); err != nil {
					return err
				}
			}
			return nil
		}},
		{"a tree to change", ocispec.MediaTypeImageLayerGzip, writeTree},
		{"a large file", ocispec.MediaTypeImageLayer, func(tw *tarWriter) error {
			return all(tw.dir("lamina"), tw.noise(Big, bigSize))
		}},
	}
	return writeArchive(w, DebianName, ocispec.ImageConfig{
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		Cmd: []string{"/usr/local/bin/hello"},
	}, append(layers, changes(debianDeletions)...))
}

// Small writes to w an image of the same layers over one static busybox, with
// no large file.
func Small(w io.Writer, busybox []byte) error {
	layers := []layer{
		{"base", ocispec.MediaTypeImageLayerGzip, func(tw *tarWriter) error {
			return writeBusybox(tw, busybox)
		}},
		{"a tree to change", ocispec.MediaTypeImageLayerZstd, writeTree},
	}
	return writeArchive(w, SmallName, ocispec.ImageConfig{
		Env: []string{"PATH=/bin:/usr/local/bin"},
		Cmd: []string{"/usr/local/bin/hello"},
	}, append(layers, changes(nil)...))
}

// changes are the layers that change the tree of writeTree, and the system
// below it where deletions is given. Like a real layer, each has an entry for
// every directory that it changes; without one the directory's time would be
// that of its unpacking.
func changes(deletions func(*tarWriter) error) []layer {
	return []layer{
		{"deletions", ocispec.MediaTypeImageLayerGzip, func(tw *tarWriter) error {
			err := all(
				tw.dir("lamina/gone"), tw.dir("lamina/again"), tw.dir("lamina/links"),
				tw.whiteout("lamina/gone/file"),
				tw.whiteout("lamina/gone/link"),
				tw.whiteout("lamina/gone/dir"),
				tw.whiteout("lamina/again/file"),
				tw.whiteout("lamina/links/two"),
			)
			if err != nil || deletions == nil {
				return err
			}
			return deletions(tw)
		}},
		{"replaced directories", ocispec.MediaTypeImageLayer, writeReplaced},
		{"other types", ocispec.MediaTypeImageLayerGzip, writeRetyped},
		{"hard links to lower files", ocispec.MediaTypeImageLayerGzip, writeRelinked},
		{"modifications", ocispec.MediaTypeImageLayerGzip, writeModified},
		{"a program", ocispec.MediaTypeImageLayerGzip, func(tw *tarWriter) error {
			return all(
				tw.dir("usr"), tw.dir("usr/local"), tw.dir("usr/local/bin"),
				tw.text("usr/local/bin/hello", hello, mode(0o755)),
			)
		}},
	}
}

// debianDeletions deletes and hides parts of the real system, where layers
// have many files.
func debianDeletions(w *tarWriter) error {
	return all(
		w.dir("etc"), w.dir("usr"), w.dir("usr/share"),
		w.whiteout("usr/share/doc"),
		w.whiteout("usr/share/man"),
		w.whiteout("etc/motd"),
		w.dir("usr/share/locale"),
		w.opaque("usr/share/locale"),
		w.text("usr/share/locale/README", "Locales are left out of this image.\n"),
	)
}

func writeReplaced(w *tarWriter) error {
	return all(
		w.dir("lamina"), w.dir("lamina/again"),
		w.dir("lamina/replaced", mode(0o700), owner(0, 0)),
		w.opaque("lamina/replaced"),
		w.text("lamina/replaced/both", "in both, the new one\n"),
		w.text("lamina/replaced/new", "only in the new one\n"),
		w.text("lamina/again/file", "made again after its deletion\n"),
	)
}

func writeRetyped(w *tarWriter) error {
	return all(
		w.dir("lamina"),
		w.dir("lamina/file-to-dir"),
		w.text("lamina/file-to-dir/child", "a file was my directory\n"),
		w.text("lamina/dir-to-file", "a directory was here\n"),
		w.symlink("lamina/dir-to-link", "links"),
		w.dir("lamina/link-to-dir"),
		w.text("lamina/link-to-dir/child", "a symlink was my directory\n"),
		w.text("lamina/link-to-file", "a symlink was here\n"),
	)
}

// writeRelinked adds a fourth name to an inode that has three in a lower layer.
// A layer cannot say that; what an image builder writes is the file again under
// one of its names, with the new name linked to it. The other two keep the old
// inode.
func writeRelinked(w *tarWriter) error {
	return all(
		w.dir("lamina"), w.dir("lamina/links"),
		w.text("lamina/links/a", "one inode, three names\n"),
		w.link("lamina/links/new", "lamina/links/a"),
		w.dir("lamina/links/added"),
		w.link("lamina/links/added/new", "lamina/links/a"),
	)
}

func writeModified(w *tarWriter) error {
	return all(
		w.dir("lamina"),
		w.text("lamina/grows", "first line\nsecond line\n"),
		w.text("lamina/mode", "only the mode changes\n", mode(0o4711)),
		w.text("lamina/owner", "only the owner changes\n", owner(42, 4242)),
		w.text("lamina/time", "only the time changes\n", mtime(created.Add(time.Hour))),
		w.text("lamina/attribute", "only the attribute changes\n", xattr("user.lamina.change", "after")),
		w.dir("lamina/dir-mode", mode(0o1770), owner(7, 77)),
	)
}

func writeBusybox(w *tarWriter, busybox []byte) error {
	err := all(
		w.dir("bin"), w.dir("dev"), w.dir("etc"), w.dir("proc"), w.dir("sys"),
		w.dir("tmp", mode(0o1777)),
		w.text("etc/os-release", "PRETTY_NAME=\"a small Lamina image\"\n"),
		w.text("etc/passwd", "root:x:0:0:root:/:/bin/sh\n"),
		w.file("bin/busybox", bytes.NewReader(busybox), int64(len(busybox)), mode(0o755)),
	)
	for applet := range strings.FieldsSeq("cat echo id ls mkdir rm sh sha256sum sleep sync touch true uname") {
		err = all(err, w.symlink("bin/"+applet, "busybox"))
	}
	return err
}

func identity(name string) string { return name }

// usrMerged moves a path of a package to where dpkg puts it on a system whose
// /bin, /sbin and /lib are links into /usr.
func usrMerged(name string) string {
	for _, top := range []string{"bin", "sbin", "lib", "lib64"} {
		if name == top || strings.HasPrefix(name, top+"/") {
			return "usr/" + name
		}
	}
	return name
}

// copyTar copies the entries of the tar file name, each to where rename says.
func copyTar(w *tarWriter, name string, rename func(string) string) (err error) {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := copyEntry(w, h, r, rename); err != nil {
			return fmt.Errorf("%s: %s: %w", name, h.Name, err)
		}
	}
}

func copyEntry(w *tarWriter, h *tar.Header, r io.Reader, rename func(string) string) error {
	to := *h
	to.Name = rename(path.Clean(h.Name))
	if h.Typeflag == tar.TypeDir {
		to.Name += "/"
	}
	if h.Typeflag == tar.TypeLink {
		to.Linkname = rename(path.Clean(h.Linkname))
	}
	to.Format = tar.FormatPAX
	to.Uname, to.Gname = "", ""
	to.AccessTime, to.ChangeTime = time.Time{}, time.Time{}
	if err := w.WriteHeader(&to); err != nil {
		return err
	}
	_, err := io.Copy(w, r)
	return err
}
