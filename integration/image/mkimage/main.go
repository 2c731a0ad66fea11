// Mkimage writes a test image as an OCI archive:
//
//	mkimage -o FILE ROOTFS.tar [PACKAGE.tar ...]
//	mkimage -o FILE -small BUSYBOX
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/lamina-snapshotter/lamina/integration/image"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "mkimage:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	flags := flag.NewFlagSet("mkimage", flag.ContinueOnError)
	out := flags.String("o", "", "file to write")
	small := flags.Bool("small", false, "make the small image from a static busybox")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *out == "" || flags.NArg() == 0 {
		return errors.New("needs -o FILE and the sources of the image")
	}
	if *small {
		busybox, err := os.ReadFile(flags.Arg(0))
		if err != nil {
			return err
		}
		return write(*out, func(w io.Writer) error { return image.Small(w, busybox) })
	}
	src := image.Sources{Rootfs: flags.Arg(0), Packages: flags.Args()[1:]}
	return write(*out, func(w io.Writer) error { return image.Debian(w, src) })
}

// write makes the file whole or not at all: a killed build leaves no image
// that a later run would take for a good one.
func write(name string, content func(io.Writer) error) error {
	tmp := name + ".tmp"
	f, err := os.Create(tmp)
	if err != nil {
		return err
	}
	if err := errors.Join(content(f), f.Close()); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return os.Rename(tmp, name)
}
