package overlayaufs

import "fmt"

// A form is how the layers of a place say that something below them is deleted or hidden. It decides which union file
// system can read them.
type form string

const (
	// formOverlay: a deletion is a character device 0:0, an opaque directory has the attribute overlay.opaque. Owner
	// files name no form where it is this one.
	formOverlay form = ""
	// formAufs: a deletion of NAME is a file .wh.NAME, an opaque directory has a file .wh..wh..opq in it.
	formAufs form = "aufs"
)

func (f form) String() string {
	if f == formOverlay {
		return driverOverlay
	}
	return string(f)
}

// check returns an error if this version knows no such form.
func (f form) check() error {
	switch f {
	case formOverlay, formAufs:
		return nil
	}
	return fmt.Errorf("layers written as %q, which this version of Lamina does not know", string(f))
}

// parseForm is the inverse of String.
func parseForm(name string) (form, error) {
	switch name {
	case driverOverlay:
		return formOverlay, nil
	case driverAufs:
		return formAufs, nil
	}
	return "", fmt.Errorf("%q is none of: %s, %s", name, driverAufs, driverOverlay)
}

// The names by which aufs keeps its own in a branch (include/uapi/linux/aufs_type.h). No file that a user makes has the
// prefix.
const (
	whPrefix   = ".wh."
	opaqueName = ".wh..wh..opq"

	pseudoLinks = ".wh..wh.plnk"
)

// aufsOwn are what aufs makes in the root of a writable branch for itself: the file that whiteouts are hard links to,
// what is removed while it is open, and pseudo-links: files that were copied up, of which other names are below.
var aufsOwn = []string{".wh..wh.aufs", ".wh..wh.orph", pseudoLinks}
