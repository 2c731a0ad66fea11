package admin

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

const tRoot = "/var/lib/lamina"

// A fake answers what the test set it to, and keeps what it was told to do.
type fake struct {
	status    Status
	snapshots []Snapshot
	space     []Space
	err       error         // after all of that
	hang      chan struct{} // if it is not nil, Status says so and waits for its context
	told      []string
	ended     []bool // whether the context had ended, of each
}

func (f *fake) Status(ctx context.Context) (Status, error) {
	if f.hang != nil {
		f.hang <- struct{}{}
		<-ctx.Done()
		return Status{}, ctx.Err()
	}
	return f.status, f.err
}

func (f *fake) Snapshots(_ context.Context, each func(Snapshot) error) error {
	for _, s := range f.snapshots {
		if err := each(s); err != nil {
			return err
		}
	}
	return f.err
}

func (f *fake) Inspect(_ context.Context, name, key string) (Inspection, error) {
	for _, s := range f.snapshots {
		if s.Name == name && s.Key == key {
			return Inspection{Snapshot: s}, nil
		}
	}
	return Inspection{}, fmt.Errorf("%q of %s: %w", key, name, errdefs.ErrNotFound)
}

func (f *fake) Space(_ context.Context, progress func(done, total int), each func(Space) error) error {
	for i, s := range f.space {
		if progress != nil {
			progress(i+1, len(f.space))
		}
		if err := each(s); err != nil {
			return err
		}
	}
	return f.err
}

func (f *fake) tell(ctx context.Context, what string) error {
	f.ended = append(f.ended, ctx.Err() != nil)
	f.told = append(f.told, what)
	return f.err
}

func (f *fake) Cleanup(ctx context.Context) error { return f.tell(ctx, "cleanup") }

func (f *fake) GrowPool(ctx context.Context, bytes uint64) (Pool, error) {
	return Pool{Name: "p", Data: Fill{Total: bytes}}, f.tell(ctx, fmt.Sprint("grow ", bytes))
}

func (f *fake) TrimPool(ctx context.Context) (uint64, error) { return 7, f.tell(ctx, "trim") }

func (f *fake) AddDevice(ctx context.Context, device string) error { return f.tell(ctx, "add "+device) }

// tServe serves f until the test ends, and returns the address.
func tServe(t *testing.T, f *fake, more ...Endpoint) string {
	t.Helper()
	return tServeHandler(t, Handler(tRoot, f, f, more...))
}

func tServeHandler(t *testing.T, h http.Handler) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "lamina") //nolint:usetesting // t.TempDir may be too long for a socket
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	address := filepath.Join(dir, "a")
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", address)
	require.NoError(t, err)
	s := NewServer(t.Context(), h)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		require.NoError(t, s.Stop(ctx))
		require.NoError(t, <-served)
	})
	return address
}

func tClient(t *testing.T, address string) *Client {
	t.Helper()
	c := NewClient(address, tRoot)
	t.Cleanup(c.Close)
	return c
}

// tAnswer reads an answer.
func tAnswer(t *testing.T, conn io.Reader) (int, string) {
	t.Helper()
	reply, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	defer reply.Body.Close()
	body, err := io.ReadAll(reply.Body)
	if err != nil {
		t.Error(err)
	}
	return reply.StatusCode, string(body)
}
