package guest

import (
	"context"
	"io"
	"sync"
)

// A stream passes on what a guest writes on one of its lines, and counts it.
// Lines are no faster than one another: a guest's report can arrive before the
// end of the output that it reports.
type stream struct {
	w io.Writer // nil once it failed

	mu   sync.Mutex
	n    int64
	more chan struct{} // closed when n grows
}

func newStream(w io.Writer) *stream {
	return &stream{w: w, more: make(chan struct{})}
}

// read passes on all of r.
func (s *stream) read(r io.Reader) { _, _ = io.Copy(s, r) }

// Write never fails: the guest must not block.
func (s *stream) Write(p []byte) (int, error) {
	if s.w != nil {
		if _, err := s.w.Write(p); err != nil {
			s.w = nil
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n += int64(len(p))
	close(s.more)
	s.more = make(chan struct{})
	return len(p), nil
}

// wait returns when n bytes have been passed on, or ctx is done.
func (s *stream) wait(ctx context.Context, n int64) {
	for {
		s.mu.Lock()
		have, more := s.n, s.more
		s.mu.Unlock()
		if have >= n {
			return
		}
		select {
		case <-more:
		case <-ctx.Done():
			return
		}
	}
}
