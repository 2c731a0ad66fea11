package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// A class is a kind of error that passes the socket.
type class struct {
	name   string
	err    error
	status int
}

// classes are tried in their order, and the last is everything's.
var classes = []class{
	{"partial", ErrPartial, http.StatusInternalServerError},
	{"not-found", errdefs.ErrNotFound, http.StatusNotFound},
	{"invalid-argument", errdefs.ErrInvalidArgument, http.StatusBadRequest},
	{"out-of-range", errdefs.ErrOutOfRange, http.StatusBadRequest},
	{"already-exists", errdefs.ErrAlreadyExists, http.StatusConflict},
	{"failed-precondition", errdefs.ErrFailedPrecondition, http.StatusPreconditionFailed},
	{"conflict", errdefs.ErrConflict, http.StatusConflict},
	{"aborted", errdefs.ErrAborted, http.StatusConflict},
	{"permission-denied", errdefs.ErrPermissionDenied, http.StatusForbidden},
	{"unauthenticated", errdefs.ErrUnauthenticated, http.StatusUnauthorized},
	{"resource-exhausted", errdefs.ErrResourceExhausted, http.StatusInsufficientStorage},
	{"not-implemented", errdefs.ErrNotImplemented, http.StatusNotImplemented},
	{"unavailable", errdefs.ErrUnavailable, http.StatusServiceUnavailable},
	{"data-loss", errdefs.ErrDataLoss, http.StatusInternalServerError},
	{"internal", errdefs.ErrInternal, http.StatusInternalServerError},
	{"canceled", context.Canceled, http.StatusServiceUnavailable},
	{"deadline-exceeded", context.DeadlineExceeded, http.StatusGatewayTimeout},
	{"unknown", errdefs.ErrUnknown, http.StatusInternalServerError},
}

func classOf(err error) class {
	for _, c := range classes {
		if errors.Is(err, c.err) {
			return c
		}
	}
	return classes[len(classes)-1]
}

// A failure is an error as it is sent.
type failure struct {
	Error string `json:"error"`
	Class string `json:"class"`
}

func newFailure(err error) failure {
	return failure{Error: fmt.Sprint(err), Class: classOf(err).name}
}

// A remoteError is one of the daemon's: its text, and what it is.
type remoteError struct {
	text  string
	class error
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.class }

// reasons are classes whose name at the end of an error may be the only reason that it gives.
var reasons = []error{errdefs.ErrNotFound, context.Canceled, context.DeadlineExceeded, errdefs.ErrUnknown}

// native returns the error that was sent, without the name of its class at the end where that only says it once more. A class that this
// program does not know is ErrUnknown.
func (f failure) native() error {
	for _, c := range classes {
		if c.name != f.Class {
			continue
		}
		if slices.Contains(reasons, c.err) {
			return &remoteError{f.Error, c.err}
		}
		return &remoteError{strings.TrimSuffix(f.Error, ": "+fmt.Sprint(c.err)), c.err}
	}
	return &remoteError{f.Error, errdefs.ErrUnknown}
}
