package overlayaufs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// A link is a short name for the directory fs of a content, so that 500 of them fit in the page of options that mount(2)
// takes. It lies in the root itself and leads on from there, as containerd mounts from within the directory that all lower
// ones have in common, and with an id map sees that through another mount.
//
// Links are derived data: the name of one says which content it leads to. So nothing makes them durable. Mounts makes those
// that its mounts name, whenever it is called; Delete removes that of a content before anything else, so that a crash does
// not leave a link without its content.

const (
	// linkPrefix begins the name of a link. No content has such a name, nor what lies beside the contents.
	linkPrefix = "L"
	// linkBase makes the number of a content shorter: five digits of what takes seven in base 10.
	linkBase = 36
	// spareOptions is how many bytes of a page are left free before links are used: containerd begins to shorten options there
	// (optionsSize in core/mount/mount_linux.go).
	spareOptions = 512
)

func linkName(id uint64) string { return linkPrefix + strconv.FormatUint(id, linkBase) }

// parseLink returns the content that a name in the root is a link to.
func parseLink(name string) (id uint64, ok bool) {
	id, err := strconv.ParseUint(strings.TrimPrefix(name, linkPrefix), linkBase, 64)
	return id, err == nil && linkName(id) == name && id > 0 && id < maxID
}

// parseName returns the content that a name in the root stands for: its directory, or a link to it.
func parseName(name string) (id uint64, ok bool) {
	if id, ok := parseID(name); ok {
		return id, true
	}
	return parseLink(name)
}

// dirName returns the directory fs of a content by the name that it has without a link, from the root.
func dirName(id uint64) string { return strconv.FormatUint(id, 10) + "/" + fsName }

// lowerName returns how a chain's mounts name its read-only layers, from the root: linkName if the longer names do not fit
// in a page, else dirName.
func (b *Backend) lowerName(chain []Content) func(id uint64) string {
	if b.aufs == nil && b.optionsSize(chain, dirName) > os.Getpagesize()-spareOptions {
		return linkName
	}
	return dirName
}

// optionsSize returns how many bytes of options an overlay of a chain has at most when containerd has shortened them.
func (b *Backend) optionsSize(chain []Content, name func(uint64) string) int {
	size := len("volatile,workdir=,upperdir=,lowerdir=,")
	for _, o := range b.overlay.options {
		size += len(o) + len(",")
	}
	for i, c := range chain {
		if i == 0 {
			size += 2 * len(b.path(c.ID, workName))
		}
		size += len(name(c.ID)) + len(":")
	}
	return size
}

// link makes the links that the mounts of a chain name.
func (b *Backend) link(chain []Content) error {
	if len(chain) == 0 || b.lowerName(chain)(1) != linkName(1) {
		return nil
	}
	if size, page := b.optionsSize(chain, linkName), os.Getpagesize(); size >= page {
		return fmt.Errorf("%w: the mount of %d layers in %s has %d bytes of options, and mount(2) takes %d: a root with a "+
			"shorter path has room for more", errdefs.ErrInvalidArgument, len(chain), b.root, size, page-1)
	}
	for _, c := range chain {
		err := os.Symlink(dirName(c.ID), filepath.Join(b.root, linkName(c.ID)))
		if err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

// removeLink removes the link of a content, if it has one.
func removeLink(root int, id uint64) error {
	if err := unix.Unlinkat(root, linkName(id), 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "remove", Path: linkName(id), Err: err}
	}
	return nil
}
