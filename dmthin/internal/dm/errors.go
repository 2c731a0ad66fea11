package dm

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"
)

// errReply is returned for a reply that contradicts itself. It is a bug of the kernel or of this package.
var errReply = errors.New("malformed reply")

// An OpError is a request that was not carried out.
type OpError struct {
	Op     string // what was asked, such as "suspend" or "create snap 5 of 3"
	Device string // the device's name; empty if the request is about none
	Err    error  // the errno, or what wraps it; the context's error where waiting was given up
}

// Error returns a sentence such as "device mapper: create snap 5 of 3 on lamina-pool: file exists".
func (e *OpError) Error() string {
	what := e.Op
	switch {
	case e.Device == "":
	case strings.Contains(e.Op, " "):
		what += " on " + e.Device
	default:
		what += " " + e.Device
	}
	return fmt.Sprintf("device mapper: %s: %v", what, e.Err)
}

// Unwrap returns Err.
func (e *OpError) Unwrap() error { return e.Err }

// Is reports whether target is [fs.ErrNotExist] and the kernel said that a device (ENXIO) or a thin id (ENODATA) does not
// exist. Errno itself answers for [fs.ErrExist].
func (e *OpError) Is(target error) bool {
	return target == fs.ErrNotExist && (errors.Is(e.Err, unix.ENXIO) || errors.Is(e.Err, unix.ENODATA))
}

// invalid returns an error that says why an argument cannot be sent and unwraps to EINVAL, as if the kernel had said so.
func invalid(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), unix.EINVAL)
}
