package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// HostileName is the name of a Hostile image.
const HostileName = "docker.io/lamina/hostile:test"

// Hostile writes to w an image whose layers reach for the directory outside, an absolute path of the host, by links that lead up, that are
// absolute, that layers above go through, delete in, and replace by directories. Beside them is what is hard to walk or to remove.
func Hostile(w io.Writer, outside string) error {
	up := strings.Repeat("../", 40) + outside[1:]
	return writeArchive(w, HostileName, ocispec.ImageConfig{}, []layer{
		{"links", ocispec.MediaTypeImageLayer, func(tw *tarWriter) error {
			return all(
				tw.dir("a"), tw.symlink("a/absolute", outside), tw.symlink("up", up), tw.symlink("through", outside),
				tw.symlink("opaque", up), tw.symlink("replaced", outside), tw.symlink("file", outside+"/secret"),
				tw.symlink("loop", "loop"), tw.link("hard", "file"),
				tw.text("../../../../climbs", "x"), tw.text("/rooted", "x"), tw.text("a/../../../dots", "x"),
			)
		}},
		{"odd files", ocispec.MediaTypeImageLayer, func(tw *tarWriter) error {
			return all(
				tw.text(strings.Repeat("n", 255), "x"), tw.text("new\nline,comma:colon\\\x1b[2J", "x"),
				tw.device("null", tar.TypeChar, 1, 3), tw.device("disk", tar.TypeBlock, 7, 0), tw.device("zero", tar.TypeChar, 0, 0),
				tw.text("setuid", "x", mode(0o6755)), tw.dir("closed", mode(0)), tw.text("closed/in", "x", mode(0)), writeDeep(tw, 300),
			)
		}},
		{"what goes through the links", ocispec.MediaTypeImageLayer, func(tw *tarWriter) error {
			return all(
				tw.text("up/planted", "planted"), tw.text("through/planted", "planted"), tw.text("a/absolute/planted", "planted"),
				tw.whiteout("up/secret"), tw.opaque("opaque"), tw.dir("replaced"), tw.text("replaced/planted", "planted"),
				tw.text("file", "planted"), tw.whiteout("through/directory"),
			)
		}},
	})
}

// writeDeep writes directories within each other.
func writeDeep(w *tarWriter, depth int) (err error) {
	for i := range depth {
		err = errors.Join(err, w.dir("deep"+strings.Repeat("/d", i)))
	}
	return err
}

// Refused are images that no unpacking may take, each by what it tries.
func Refused(outside string) map[string]func(io.Writer) error {
	image := func(write func(*tarWriter) error) func(io.Writer) error {
		return func(w io.Writer) error {
			return writeArchive(w, HostileName, ocispec.ImageConfig{}, []layer{{"hostile", ocispec.MediaTypeImageLayer, write}})
		}
	}
	refused := map[string]func(io.Writer) error{}
	for _, of := range []string{".", ".."} {
		refused[fmt.Sprintf("a whiteout of %s", of)] = image(func(tw *tarWriter) error {
			return all(tw.dir("a"), tw.text(path.Join("a", whiteoutPrefix)+of, ""))
		})
	}
	refused["a hard link out of the layer"] = image(func(tw *tarWriter) error {
		return all(tw.link("stolen", strings.Repeat("../", 40)+outside[1:]+"/secret"))
	})
	refused["a hard link through a link"] = image(func(tw *tarWriter) error {
		return all(tw.symlink("out", outside), tw.link("stolen", "out/secret"))
	})
	return refused
}
