package guest

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestStream(t *testing.T) {
	var out bytes.Buffer
	s := newStream(&out)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.wait(t.Context(), 10)
	}()
	s.read(strings.NewReader("hello"))
	select {
	case <-done:
		t.Error("5 bytes were taken for 10")
	case <-time.After(10 * time.Millisecond):
	}
	s.read(strings.NewReader("hello"))
	<-done
	if out.String() != "hellohello" {
		t.Errorf("got %q", &out)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s.wait(ctx, 11)
}

// TestStreamFails checks that a guest whose output nobody takes does not block.
func TestStreamFails(t *testing.T) {
	s := newStream(failing{})
	s.read(strings.NewReader("hello"))
	s.read(strings.NewReader("hello"))
	s.wait(t.Context(), 10)
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("no") }
