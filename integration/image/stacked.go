package image

import (
	"fmt"
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// StackedName is the name of a Stacked image.
const StackedName = "docker.io/lamina/stacked:test"

// Stacked writes to w an image of no system whose layers cannot be unpacked
// without knowledge of those below, or so one might think: beside what changes
// does, they have files in directories that they have no entry for.
func Stacked(w io.Writer) error {
	layers := append([]layer{
		{"base", ocispec.MediaTypeImageLayerGzip, func(tw *tarWriter) error {
			return all(tw.dir("usr"), tw.dir("usr/local"), tw.dir("usr/local/bin"), writeBareBase(tw), writeBulk(tw, "base"))
		}},
		{"a tree to change", ocispec.MediaTypeImageLayerZstd, writeTree},
	}, changes(nil)...)
	for i, write := range []func(*tarWriter) error{writeBareFiles, writeBareModes, writeBareAgain, writeBareReborn} {
		layers = append(layers, layer{"bare files", ocispec.MediaTypeImageLayerGzip, func(tw *tarWriter) error {
			return all(write(tw), writeBulk(tw, fmt.Sprint(i)))
		}})
	}
	return writeArchive(w, StackedName, ocispec.ImageConfig{}, layers)
}

// DeepName is the name of a Deep image.
const DeepName = "docker.io/lamina/deep:test"

// Deep writes to w an image of that many layers over one static busybox: each has
// a file of its own, deletes that of the one below it, and writes its number
// into the file "number".
func Deep(w io.Writer, busybox []byte, layers int) error {
	deep := []layer{{"base", ocispec.MediaTypeImageLayerGzip, func(tw *tarWriter) error {
		return all(writeBusybox(tw, busybox), tw.text("0", ""))
	}}}
	for i := 1; i < layers; i++ {
		deep = append(deep, layer{"one of many", ocispec.MediaTypeImageLayer, func(tw *tarWriter) error {
			return all(tw.text(fmt.Sprint(i), ""), tw.whiteout(fmt.Sprint(i-1)), tw.text("number", fmt.Sprint(i)))
		}})
	}
	return writeArchive(w, DeepName, ocispec.ImageConfig{Env: []string{"PATH=/bin"}}, deep)
}

// writeBulk writes what takes a moment to unpack.
func writeBulk(w *tarWriter, name string) error {
	err := w.dir("bulk-" + name)
	for i := range 100 {
		err = all(err, w.noise(fmt.Sprintf("bulk-%s/%d", name, i), 20<<10))
	}
	return err
}

func writeBareBase(w *tarWriter) error {
	return all(
		w.dir("bare"),
		w.dir("bare/closed", mode(0o700), owner(1000, 1001), xattr("user.lamina.dir", "from the base")),
		w.dir("bare/closed/deep", mode(0o2775), owner(0, 50)),
		w.dir("bare/opaque", mode(0o711), owner(7, 8)),
		w.text("bare/opaque/hidden", "hidden by a layer that has nothing else there\n"),
		w.dir("bare/kept", mode(0o1777)),
		w.text("bare/kept/file", "deleted by a layer that has nothing else there\n"),
		w.dir("bare/again", mode(0o750), owner(5, 6)),
		w.dir("bare/gone", mode(0o700), owner(9, 9)),
		w.text("bare/gone/old", "deleted with its directory\n"),
		w.text("bare/todir", "a directory without an entry comes here\n"),
		w.dir("bare/real", mode(0o710), owner(3, 4)),
		w.dir("bare/real/sub", mode(0o701), owner(4, 3)),
		w.symlink("bare/link", "/bare/real"),
		w.dir("bare/group"),
		w.dir("bare/group/sub", mode(0o750), owner(2, 3)),
	)
}

func writeBareFiles(w *tarWriter) error {
	return all(
		w.text("bare/closed/deep/new", "below two directories without entries\n"),
		w.text("bare/nowhere/new", "in a directory that no layer has an entry for\n"),
		w.whiteout("bare/kept/file"),
		w.dir("bare/group", mode(0o2755), owner(0, 66)),
		w.text("bare/group/sub/new", "its directory is made in one with the group bit\n"),
	)
}

func writeBareModes(w *tarWriter) error {
	return all(
		w.opaque("bare/opaque"),
		w.dir("bare/again", mode(0o705), owner(6, 5)),
		w.dir("bare/closed/deep", mode(0o755), owner(0, 0)),
		w.text("bare/closed/deep/newer", "its directory has the entry of a directory without one\n"),
		w.whiteout("bare/gone"),
	)
}

func writeBareAgain(w *tarWriter) error {
	return all(
		w.text("bare/again/new", "its directory has changed in the layer below\n"),
		w.text("bare/todir/new", "a file was my directory\n"),
		w.text("bare/gone/reborn", "its directory was deleted in the layer below\n"),
	)
}

func writeBareReborn(w *tarWriter) error {
	return all(
		w.text("bare/gone/newer", "its directory is one that nobody described\n"),
		w.text("bare/nowhere/newer", "and so is this one's\n"),
	)
}

// LayeredName is the name of a Layered image.
const LayeredName = "docker.io/lamina/layered:test"

// Layered writes to w an image of that many layers over one static busybox, each but the first with that many files of size
// bytes. All are gzip.
func Layered(w io.Writer, busybox []byte, layers, files int, size int64) error {
	list := []layer{{"base", ocispec.MediaTypeImageLayerGzip, func(tw *tarWriter) error { return writeBusybox(tw, busybox) }}}
	for i := 1; i < layers; i++ {
		list = append(list, layer{"files", ocispec.MediaTypeImageLayerGzip, func(tw *tarWriter) error {
			dir := fmt.Sprint("layer-", i)
			err := tw.dir(dir)
			for j := range files {
				err = all(err, tw.noise(fmt.Sprintf("%s/%d", dir, j), size))
			}
			return err
		}})
	}
	return writeArchive(w, LayeredName, ocispec.ImageConfig{Env: []string{"PATH=/bin"}}, list)
}
