package admin

import (
	"context"
	"errors"
	stdlog "log"
	"net/http"
	"runtime/debug"
	"strings"

	"github.com/containerd/log"
)

// EndOnPanic ends the process when h panics, which net/http would log and pass over: the state in memory is not what the code believes
// then, perhaps with a lock held for ever, while what is on disk is right at any instant. [http.ErrAbortHandler] only ends the answer.
func EndOnPanic(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			what := recover()
			if what == nil {
				return
			}
			if err, ok := what.(error); ok && errors.Is(err, http.ErrAbortHandler) {
				panic(http.ErrAbortHandler)
			}
			stack := string(debug.Stack())
			go func() { // where nobody recovers
				_, _ = stdlog.Writer().Write([]byte("an operator's request panicked:\n" + stack))
				panic(what)
			}()
			select {} // the answer is not ended as if all were well
		}()
		h.ServeHTTP(w, r)
	})
}

// ErrorLog is for an http.Server, whose own complaints go to the log of ctx.
func ErrorLog(ctx context.Context) *stdlog.Logger { return stdlog.New(complaints{log.G(ctx)}, "", 0) }

type complaints struct{ log *log.Entry }

func (c complaints) Write(line []byte) (int, error) {
	c.log.Warn("http: " + strings.TrimPrefix(strings.TrimSpace(string(line)), "http: "))
	return len(line), nil
}
