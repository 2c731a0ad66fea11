package snapshotter

import (
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/metadata"
)

// fail is the edge where errors get their class of containerd's errdefs and the call they come from. A class that a
// backend gave stays, and so do the errors of a context: gRPC knows them.
func fail(op, key string, err error) error {
	if err == nil {
		return nil
	}
	if class := classOf(err); class != nil {
		return fmt.Errorf("%s %q: %w: %w", op, key, err, class)
	}
	return fmt.Errorf("%s %q: %w", op, key, err)
}

func classOf(err error) error {
	for _, c := range []struct{ err, class error }{
		{metadata.ErrNotExist, errdefs.ErrNotFound},
		{metadata.ErrExist, errdefs.ErrAlreadyExists},
		{metadata.ErrInvalid, errdefs.ErrInvalidArgument},
		{metadata.ErrState, errdefs.ErrFailedPrecondition},
		{errPlacement, errdefs.ErrFailedPrecondition},
		{metadata.ErrNoDevice, errdefs.ErrResourceExhausted},
		{metadata.ErrNoProject, errdefs.ErrResourceExhausted},
		{unix.ENOSPC, errdefs.ErrResourceExhausted},
		{unix.EDQUOT, errdefs.ErrResourceExhausted},
		{unix.EBUSY, errdefs.ErrFailedPrecondition}, // somebody else uses the content
		{metadata.ErrFailed, errdefs.ErrUnavailable},
		{unix.EROFS, errdefs.ErrUnavailable}, // the disk below has failed
		{unix.EIO, errdefs.ErrUnavailable},
		{errBusy, errdefs.ErrUnavailable},
		{errClosed, errdefs.ErrUnavailable},
	} {
		if errors.Is(err, c.err) {
			return c.class
		}
	}
	return nil
}
