// Package span tells the trace of a call, if there is one, what its parts are and how long they take. It is for what waits for the
// kernel or the disk. Where nothing is traced it costs a look into the context.
package span

import (
	"context"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// scope is what traces call the program's own spans by.
const scope = "github.com/lamina-snapshotter/lamina"

// A Span is a part of a call. The zero value is one that nobody traces.
type Span struct {
	span trace.Span
}

// Start begins a part of the call of ctx.
func Start(ctx context.Context, name string) (context.Context, Span) {
	call := trace.SpanFromContext(ctx)
	if !call.IsRecording() {
		return ctx, Span{}
	}
	ctx, s := call.TracerProvider().Tracer(scope).Start(ctx, name)
	return ctx, Span{s}
}

// End is its end, and err what came of it.
func (s Span) End(err error) {
	if s.span == nil {
		return
	}
	if err != nil {
		s.span.RecordError(err)
		s.span.SetStatus(codes.Error, "")
	}
	s.span.End()
}
