package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
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

func (f *fake) tell(what string) error {
	f.told = append(f.told, what)
	return f.err
}

func (f *fake) Cleanup(context.Context) error { return f.tell("cleanup") }

func (f *fake) GrowPool(_ context.Context, bytes uint64) (Pool, error) {
	return Pool{Name: "p"}, f.tell(fmt.Sprint("grow ", bytes))
}

func (f *fake) TrimPool(context.Context) (uint64, error) { return 7, f.tell("trim") }

func (f *fake) AddDevice(_ context.Context, device string) error { return f.tell("add " + device) }

// tServe serves f until the test ends, and returns the address.
func tServe(t *testing.T, f *fake, more ...Endpoint) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "lamina") //nolint:usetesting // t.TempDir may be too long for a socket
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	address := filepath.Join(dir, "a")
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", address)
	require.NoError(t, err)
	s := NewServer(t.Context(), Handler(tRoot, f, f, more...))
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

// What a Source tells arrives as it was.
func TestClient(t *testing.T) {
	when := time.Date(2026, 11, 22, 19, 0, 0, 5, time.UTC)
	rate := Age(12.5)
	f := &fake{status: Status{
		Version: "v1", Running: true, Root: tRoot,
		Backends: []Backend{{Name: "union", Disk: &Disk{Type: "ext4"}}, {Name: "thin", Pool: &Pool{Name: "p", TimeToFull: &rate}}},
	}}
	for i := range 1000 {
		f.snapshots = append(f.snapshots, Snapshot{
			ID: uint64(i), Name: "lamina", Key: fmt.Sprintf("k8s.io/%d/a&b=%%\x1b[2J c", i), Created: when, Updated: when,
			Labels: map[string]string{"a": strings.Repeat("ü<>", 100)}, Usage: &Usage{Bytes: 3},
		})
		f.space = append(f.space, Space{Name: "lamina", Key: fmt.Sprint(i), Freed: uint64(i)})
	}
	c := tClient(t, tServe(t, f))

	status, err := c.Status(t.Context())
	require.NoError(t, err)
	require.Equal(t, f.status, status)
	var snapshots []Snapshot
	require.NoError(t, c.Snapshots(t.Context(), func(s Snapshot) error {
		snapshots = append(snapshots, s)
		return nil
	}))
	require.Equal(t, f.snapshots, snapshots)
	one, err := c.Inspect(t.Context(), "lamina", f.snapshots[9].Key)
	require.NoError(t, err)
	require.Equal(t, f.snapshots[9], one.Snapshot)
	for _, name := range []string{"other", "a/b", "", "%2f"} {
		_, err = c.Inspect(t.Context(), name, "k")
		require.ErrorIs(t, err, errdefs.ErrNotFound, name)
	}

	var space []Space
	var last [2]int
	require.NoError(t, c.Space(t.Context(), func(done, total int) { last = [2]int{done, total} }, func(s Space) error {
		space = append(space, s)
		return nil
	}))
	require.Equal(t, f.space, space)
	require.Equal(t, [2]int{1000, 1000}, last)

	stop := errors.New("enough")
	require.ErrorIs(t, c.Snapshots(t.Context(), func(Snapshot) error { return stop }), stop)
}

func TestClientChanges(t *testing.T) {
	f := &fake{}
	c := tClient(t, tServe(t, f))
	require.NoError(t, c.Cleanup(t.Context()))
	pool, err := c.GrowPool(t.Context(), 1<<40)
	require.NoError(t, err)
	require.Equal(t, "p", pool.Name)
	freed, err := c.TrimPool(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 7, freed)
	require.NoError(t, c.AddDevice(t.Context(), "/dev/disk/by-id/a&b=c d"))
	require.Equal(t, []string{"cleanup", "grow 1099511627776", "trim", "add /dev/disk/by-id/a&b=c d"}, f.told)
	require.ErrorIs(t, c.AddDevice(t.Context(), ""), errdefs.ErrInvalidArgument)
	_, err = c.GrowPool(t.Context(), 0)
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	require.Len(t, f.told, 4)
}

// Errors keep their class and text, before the first line and after it.
func TestErrors(t *testing.T) {
	for _, class := range classes {
		err := fmt.Errorf("the reason: %w", class.err)
		f := &fake{err: err, snapshots: []Snapshot{{Key: "one"}}}
		c := tClient(t, tServe(t, f))
		_, got := c.Status(t.Context())
		require.ErrorIs(t, got, class.err, class.name)
		require.EqualError(t, got, fmt.Sprint(err))
		n := 0
		got = c.Snapshots(t.Context(), func(Snapshot) error { n++; return nil })
		require.ErrorIs(t, got, class.err, class.name)
		require.EqualError(t, got, fmt.Sprint(err))
		require.Equal(t, 1, n, class.name)
		got = c.Space(t.Context(), nil, func(Space) error { return nil })
		require.ErrorIs(t, got, class.err, class.name)
	}
	require.Equal(t, "unknown", newFailure(errors.New("x")).Class)
	require.ErrorIs(t, failure{"x", "of-the-future"}.native(), errdefs.ErrUnknown)
}

func TestRootOfAnother(t *testing.T) {
	address := tServe(t, &fake{})
	c := NewClient(address, "/other")
	t.Cleanup(c.Close)
	_, err := c.Status(t.Context())
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "the daemon has the root /var/lib/lamina, not /other")
	require.ErrorIs(t, c.Cleanup(t.Context()), errdefs.ErrFailedPrecondition)

	_, err = tClient(t, address+"x").Status(t.Context())
	require.ErrorIs(t, err, ErrNoDaemon)
}

// tRaw sends a request as it is and returns the status and the body of the answer.
func tRaw(t *testing.T, address, request string) (int, string) {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), "unix", address)
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	_, err = io.WriteString(conn, request)
	require.NoError(t, err)
	return tAnswer(t, conn)
}

func TestRawRequests(t *testing.T) {
	f := &fake{status: Status{Backends: []Backend{{Name: "thin", Pool: &Pool{Name: "p"}}}}}
	page := Endpoint{http.MethodGet, "/metrics", "metrics", time.Second, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "lamina_up 1\n")
	})}
	address := tServe(t, f, page)
	for _, tc := range []struct {
		request, says string
		status        int
	}{
		{"GET / HTTP/1.0\r\n\r\n", "/metrics", 200},
		{"GET / HTTP/1.0\r\n\r\n", "/v1/pool/devices", 200},
		{"GET /metrics HTTP/1.0\r\n\r\n", "lamina_up 1", 200},
		{"GET /v1/pool HTTP/1.0\r\n\r\n", `"name":"p"`, 200},
		{"GET /v1/status?root=/x HTTP/1.0\r\n\r\n", "failed-precondition", 412},
		{"GET /v2/status HTTP/1.0\r\n\r\n", "GET / lists", 404},
		{"POST /v1/status HTTP/1.0\r\n\r\n", "GET / lists", 404},
		{"GET /v1/cleanup HTTP/1.0\r\n\r\n", "GET / lists", 404},
		{"GET /v1/snapshots/lamina HTTP/1.0\r\n\r\n", "needs one key=", 400},
		{"GET /v1/snapshots/lamina?key=a&key=b HTTP/1.0\r\n\r\n", "needs one key=", 400},
		{"GET /v1/snapshots/lamina?key=a HTTP/1.0\r\n\r\n", "not-found", 404},
		{"POST /v1/pool/grow?bytes=-1 HTTP/1.0\r\n\r\n", "no number of bytes", 400},
		{"POST /v1/pool/grow?bytes=9223372036854775808 HTTP/1.0\r\n\r\n", "no number of bytes", 400},
		{"POST /v1/cleanup HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n", "no body", 400},
		{"POST /v1/cleanup HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", "no body", 400},
		{"GET / HTTP/1.0\r\nX: " + strings.Repeat("x", headerSize+8<<10) + "\r\n\r\n", "", 431},
	} {
		status, body := tRaw(t, address, tc.request)
		require.Equal(t, tc.status, status, "%.80s: %s", tc.request, body)
		require.Contains(t, body, tc.says)
		if status != http.StatusOK && tc.says != "" {
			require.True(t, json.Valid([]byte(body)), body)
		}
	}
	require.Empty(t, f.told)

	f.status.Backends = []Backend{{Name: "thin", Problem: "no disk"}}
	status, body := tRaw(t, address, "GET /v1/pool HTTP/1.0\r\n\r\n")
	require.Equal(t, http.StatusServiceUnavailable, status, body)
	require.Contains(t, body, "no disk")
	f.status.Backends = nil
	status, body = tRaw(t, address, "GET /v1/pool HTTP/1.0\r\n\r\n")
	require.Equal(t, http.StatusNotFound, status, body)
}

// Also where the socket's mode is changed, nobody is answered but root and who runs the daemon.
func TestPeer(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to be somebody else")
	}
	f := &fake{}
	address := tServe(t, f)
	require.NoError(t, os.Chmod(filepath.Dir(address), 0o711))
	require.NoError(t, os.Chmod(address, fs.ModeSocket|0o666))
	type answer struct {
		status int
		body   string
	}
	ask := func(uid int) answer {
		got := make(chan answer)
		go func() {
			defer close(got)
			runtime.LockOSThread() // the thread ends with the goroutine, so nobody gets it as that user
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
				t.Error(errno)
				return
			}
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err == nil {
				err = unix.Connect(fd, &unix.SockaddrUnix{Name: address})
			}
			if err != nil {
				t.Error(err)
				return
			}
			conn := os.NewFile(uintptr(fd), "socket")
			defer conn.Close()
			_, err = io.WriteString(conn, "POST /v1/cleanup HTTP/1.0\r\n\r\n")
			if err != nil {
				t.Error(err)
				return
			}
			status, body := tAnswer(t, conn)
			got <- answer{status, body}
		}()
		return <-got
	}
	nobody := ask(65534)
	require.Equal(t, http.StatusForbidden, nobody.status)
	require.Contains(t, nobody.body, "user 65534 may not ask")
	require.Empty(t, f.told)
	require.Equal(t, http.StatusOK, ask(0).status)
	require.Equal(t, []string{"cleanup"}, f.told)

	_, err := allowed(t.Context())
	require.ErrorIs(t, err, errdefs.ErrPermissionDenied)
	require.Error(t, peerOf(&net.TCPConn{}).err)
	_, err = allowed(context.WithValue(t.Context(), peerKey{}, peer{err: syscall.EBADF}))
	require.ErrorIs(t, err, errdefs.ErrPermissionDenied)
}

// A stop cuts off what is asked, and says so.
func TestStop(t *testing.T) {
	f := &fake{hang: make(chan struct{})}
	dir := t.TempDir()
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", filepath.Join(dir, "a"))
	if err != nil {
		t.Skip("the temporary directory has a long name: ", err)
	}
	s := NewServer(t.Context(), Handler(tRoot, f, f))
	go func() { _ = s.Serve(l) }()
	got := make(chan error, 1)
	c := tClient(t, filepath.Join(dir, "a"))
	go func() {
		_, err := c.Status(t.Context())
		got <- err
	}()
	<-f.hang
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.NoError(t, s.Stop(ctx))
	err = <-got
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	require.ErrorContains(t, err, "stopping")
}

// Who gives up is not waited for, and neither is a daemon.
func TestGivenUp(t *testing.T) {
	f := &fake{hang: make(chan struct{}, asked)}
	address := tServe(t, f)
	c := tClient(t, address)
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan error, asked)
	for range asked {
		go func() {
			_, err := c.Status(ctx)
			got <- err
		}()
	}
	for range asked {
		<-f.hang
	}
	_, err := c.Status(t.Context())
	require.ErrorIs(t, err, errdefs.ErrUnavailable, "there are many already")
	cancel()
	for range asked {
		require.ErrorIs(t, <-got, context.Canceled)
	}
	f.hang = nil
	require.Eventually(t, func() bool {
		_, err := c.Status(t.Context())
		return err == nil
	}, time.Minute, time.Millisecond)
}

// A client that does not read is let go, and whoever reads what is cut off does not take it for all.
func TestReceiveCutOff(t *testing.T) {
	all := func(Snapshot) error { return nil }
	require.ErrorContains(t, receive(strings.NewReader("{\"key\":\"a\"}\n{\"key\":"), nil, all), "cut off")
	require.ErrorContains(t, receive(strings.NewReader("nonsense"), nil, all), "cut off")
	require.NoError(t, receive(strings.NewReader("{\"progress\":{\"done\":1,\"total\":2}}\n"), nil, all))

	w := &slowWriter{}
	before := time.Now()
	d := deadlineWriter{w}
	_, err := d.Write(bytes.Repeat([]byte("x"), 10))
	require.NoError(t, err)
	require.WithinRange(t, w.deadline, before.Add(writeTime), time.Now().Add(writeTime))
	w.deadline = time.Time{}
	d.WriteHeader(http.StatusOK)
	require.False(t, w.deadline.IsZero())
}

// A slowWriter keeps the deadline that it is given.
type slowWriter struct {
	bytes.Buffer

	deadline time.Time
}

func (w *slowWriter) Header() http.Header { return nil }
func (w *slowWriter) WriteHeader(int)     {}
func (w *slowWriter) SetWriteDeadline(t time.Time) error {
	w.deadline = t
	return nil
}
