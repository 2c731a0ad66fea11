package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

const (
	// quickTime is how long an answer may take that needs no walk.
	quickTime = 15 * time.Second
	// walkTime is how long the records may take.
	walkTime = 5 * time.Minute
	// longTime is how long it may take to walk directories, to read a pool's metadata, or to delete and to discard.
	longTime = time.Hour
	// begunTime is how long a change of the pool may take that goes on without its client.
	begunTime = 10 * time.Minute
	// writeTime is how long a client may take for what it was sent, from one write to the next.
	writeTime = 10 * time.Second
)

// How many may ask for one endpoint at once, by how long it may take. Each holds memory of the daemon's, and reads from the disk that
// containers use.
const (
	quickAsked = 32
	walkAsked  = 8
	longAsked  = 2
)

// An Endpoint is a page that a Handler serves.
type Endpoint struct {
	Method string
	Path   string
	Says   string        // what it does, in a line
	Limit  time.Duration // how long an answer may take
	Serve  http.Handler
}

// atOnce returns how many may ask for it at once.
func (e Endpoint) atOnce() int {
	switch {
	case e.Limit >= longTime:
		return longAsked
	case e.Limit > quickTime:
		return walkAsked
	}
	return quickAsked
}

// object returns an endpoint that answers with a JSON object.
func object(method, path, says string, limit time.Duration, ask func(*http.Request) (any, error)) Endpoint {
	return Endpoint{method, path, says, limit, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		what, err := ask(r)
		if err != nil {
			refuse(w, r, err)
			return
		}
		text, err := json.Marshal(what)
		if err != nil {
			refuse(w, r, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(append(text, '\n')) // who has gone needs no answer
	})}
}

// Lines returns an endpoint that answers GET with JSON objects, a line each, that look tells of. If look fails, an object with the keys "error" and
// "class" is the last.
func Lines[T any](path, says string, limit time.Duration, look func(ctx context.Context, each func(T) error) error) Endpoint {
	return lines(path, says, limit, func(r *http.Request, s *sender) error {
		return look(r.Context(), func(one T) error { return s.send(one) })
	})
}

func lines(path, says string, limit time.Duration, look func(*http.Request, *sender) error) Endpoint {
	return Endpoint{http.MethodGet, path, says, limit, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s := newSender(w)
		s.end(r, look(r, s))
	})}
}

// change returns an endpoint that changes something. That it begins is logged, so that what hangs, or takes the daemon with it, has a line
// too; and how it ends.
func change(path, says string, do func(*http.Request) (any, error)) Endpoint {
	return object(http.MethodPost, path, says, longTime, func(r *http.Request) (any, error) {
		p, _ := allowed(r.Context()) // it has been let in
		entry := log.G(r.Context()).WithFields(log.Fields{"request": r.URL.RequestURI(), "pid": p.pid, "uid": p.uid})
		entry.Info("an operator's change begins")
		start := time.Now()
		what, err := do(r)
		entry = entry.WithField("took", time.Since(start))
		if err != nil {
			entry.WithError(ended(r, err)).Warn("an operator's change failed")
		} else {
			entry.WithFields(resultOf(what)).Info("an operator's change is done")
		}
		return what, err
	})
}

// resultOf is what a log says of the answer to a change.
func resultOf(what any) log.Fields {
	switch what := what.(type) {
	case trimmed:
		return log.Fields{"bytes": what.Bytes}
	case Pool:
		if what.Data.Total == 0 { // it is not known
			return nil
		}
		return log.Fields{"data_total": what.Data.Total}
	}
	return nil
}

// refuse answers with an error.
func refuse(w http.ResponseWriter, r *http.Request, err error) {
	err = ended(r, err)
	text, _ := json.Marshal(newFailure(err)) // two strings
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(classOf(err).status)
	_, _ = w.Write(append(text, '\n'))
}

// ended returns err, with why if the request was ended from here.
func ended(r *http.Request, err error) error {
	if cause := context.Cause(r.Context()); cause != nil && errors.Is(err, r.Context().Err()) {
		return cause
	}
	return err
}

// A deadlineWriter gives each write its time, so that a client that does not read holds nothing up for longer.
type deadlineWriter struct {
	http.ResponseWriter

	limit time.Duration
}

func (w deadlineWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w deadlineWriter) extend() {
	_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(time.Now().Add(w.limit)) // a connection has deadlines
}

func (w deadlineWriter) WriteHeader(status int) {
	w.extend()
	w.ResponseWriter.WriteHeader(status)
}

func (w deadlineWriter) Write(p []byte) (int, error) {
	w.extend()
	return w.ResponseWriter.Write(p)
}

// A gate lets requests in.
type gate struct {
	root      string
	writeTime time.Duration
}

// admit returns the error that a request is refused with.
func (g gate) admit(r *http.Request) error {
	if _, err := allowed(r.Context()); err != nil {
		return err
	}
	if r.ContentLength != 0 {
		return fmt.Errorf("a request has no body here, its arguments are in the URL: %w", errdefs.ErrInvalidArgument)
	}
	if root := r.URL.Query().Get("root"); root != "" && root != g.root {
		return fmt.Errorf("the daemon has the root %s, not %s: %w", g.root, root, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// guard serves an endpoint to who may ask, for as long as it may take. It has slots of its own, so that what hangs at one keeps nobody
// from asking others.
func (g gate) guard(e Endpoint) http.Handler {
	slots := make(chan struct{}, e.atOnce())
	return EndOnPanic(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		w := deadlineWriter{out, g.writeTime}
		defer w.extend() // for what is sent when this has returned
		if err := g.admit(r); err != nil {
			// What else it sends is not waited for.
			_ = http.NewResponseController(out).SetReadDeadline(time.Now())
			w.Header().Set("Connection", "close")
			refuse(w, r, err)
			return
		}
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		default:
			refuse(w, r, fmt.Errorf("%d of these requests are under way already: %w", cap(slots), errdefs.ErrUnavailable))
			return
		}
		ctx, cancel := context.WithTimeoutCause(r.Context(), e.Limit,
			fmt.Errorf("it has taken more than %s: %w", e.Limit, context.DeadlineExceeded))
		defer cancel()
		e.Serve.ServeHTTP(w, r.WithContext(ctx))
	}))
}
