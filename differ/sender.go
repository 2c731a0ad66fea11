package differ

import (
	"errors"
	"io"
	"sync"
)

const (
	// pieceSize is how much is written at once: each write to a content store in another process is a round trip.
	pieceSize = 1 << 20
	// pieces are how many there are: one that is filled, one that is sent, and one between.
	pieces = 3
)

var errClosed = errors.New("the layer is not written to any more")

// A sender writes to a content store in large pieces, beside whoever fills them.
type sender struct {
	out  io.Writer
	full chan []byte
	free chan []byte
	done chan struct{} // closed when the goroutine that writes has ended

	failed  chan struct{} // closed when err is set
	failure sync.Once
	err     error

	mu     sync.Mutex // of what is below
	piece  []byte
	closed bool
	size   int64
}

func newSender(out io.Writer) *sender {
	s := &sender{
		out: out, full: make(chan []byte, pieces), free: make(chan []byte, pieces),
		done: make(chan struct{}), failed: make(chan struct{}),
	}
	for range pieces {
		s.free <- nil // made when it is needed: most layers are smaller
	}
	go s.run()
	return s
}

// run writes what is full, until it is closed. There is room for all pieces in both channels, so neither end waits for the other for ever.
func (s *sender) run() {
	defer close(s.done)
	for piece := range s.full {
		if !s.hasFailed() {
			if _, err := s.out.Write(piece); err != nil {
				s.fail(storeError(err))
			}
		}
		s.free <- piece[:0]
	}
}

// fail makes all further writes fail, and those that wait.
func (s *sender) fail(err error) {
	s.failure.Do(func() {
		s.err = err
		close(s.failed)
	})
}

func (s *sender) hasFailed() bool {
	select {
	case <-s.failed:
		return true
	default:
		return false
	}
}

// Write returns the error of an earlier write too.
func (s *sender) Write(p []byte) (written int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for written < len(p) {
		if s.piece == nil {
			select {
			case s.piece = <-s.free:
			case <-s.failed:
			}
		}
		if s.hasFailed() {
			return written, s.err
		}
		if s.closed {
			return written, errClosed
		}
		if s.piece == nil {
			s.piece = make([]byte, 0, pieceSize)
		}
		n := copy(s.piece[len(s.piece):cap(s.piece)], p[written:])
		s.piece = s.piece[:len(s.piece)+n]
		written += n
		s.size += int64(n)
		if len(s.piece) == cap(s.piece) {
			s.full <- s.piece
			s.piece = nil
		}
	}
	return written, nil
}

// close writes the rest, and returns what went wrong with any of it.
func (s *sender) close() error {
	s.end(true)
	if s.hasFailed() {
		return s.err
	}
	return nil
}

// abort leaves out what is not written yet.
func (s *sender) abort() {
	s.fail(errClosed)
	s.end(false)
}

func (s *sender) end(rest bool) {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		if rest && len(s.piece) > 0 {
			s.full <- s.piece
			s.piece = nil
		}
		close(s.full)
	}
	s.mu.Unlock()
	<-s.done
}
