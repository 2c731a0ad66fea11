package admin

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// progressPeriod is how often a stream tells how far it is.
const progressPeriod = 200 * time.Millisecond

// A Progress is a line of a stream that tells how far it is.
type Progress struct {
	Done  int `json:"done"`
	Total int `json:"total"`
}

// A sender writes JSON objects to a client, a line each. Its methods may be called from several goroutines.
type sender struct {
	mu   sync.Mutex
	out  http.ResponseWriter
	buf  *bufio.Writer
	json *json.Encoder
	sent bool
	told time.Time // of progress
}

func newSender(w http.ResponseWriter) *sender {
	buf := bufio.NewWriterSize(w, 32<<10)
	return &sender{out: w, buf: buf, json: json.NewEncoder(buf)}
}

func (s *sender) send(line any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.write(line)
}

func (s *sender) write(line any) error {
	if !s.sent {
		s.out.Header().Set("Content-Type", "application/x-ndjson")
	}
	s.sent = true
	return s.json.Encode(line)
}

// progress tells how far it is, once in a while, and lets the client see what there is until then.
func (s *sender) progress(done, total int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); now.Sub(s.told) >= progressPeriod || done == total {
		s.told = now
		// Who has gone is found by the request's context.
		_ = s.write(map[string]Progress{"progress": {done, total}})
		_ = s.buf.Flush()
		_ = http.NewResponseController(s.out).Flush()
	}
}

// end ends the stream, with an error if there is one. Before anything was sent that is the answer's status; afterwards its last line.
func (s *sender) end(r *http.Request, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err != nil && !s.sent:
		refuse(s.out, r, err)
		return
	case err != nil:
		err = s.write(newFailure(ended(r, err)))
	case !s.sent:
		s.out.Header().Set("Content-Type", "application/x-ndjson")
	}
	if err := errors.Join(err, s.buf.Flush()); err != nil {
		panic(http.ErrAbortHandler) // so that what did arrive is not taken for all
	}
}

// receive reads what a sender wrote.
func receive[T any](in io.Reader, progress func(done, total int), each func(T) error) error {
	dec := json.NewDecoder(in)
	for {
		var raw json.RawMessage
		if err := dec.Decode(&raw); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("the answer is cut off: %w", err)
		}
		var special struct {
			failure

			Progress *Progress `json:"progress"`
		}
		if err := json.Unmarshal(raw, &special); err != nil {
			return fmt.Errorf("the answer: %w", err)
		}
		switch {
		case special.Class != "":
			return special.native()
		case special.Progress != nil:
			if progress != nil {
				progress(special.Progress.Done, special.Progress.Total)
			}
			continue
		}
		var one T
		if err := json.Unmarshal(raw, &one); err != nil {
			return fmt.Errorf("the answer: %w", err)
		}
		if err := each(one); err != nil {
			return err
		}
	}
}
