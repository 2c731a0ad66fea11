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
	case string(formAufs):
		return formAufs, nil
	}
	return "", fmt.Errorf("%q is none of: %s, %s", name, formAufs, driverOverlay)
}
