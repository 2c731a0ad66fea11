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
	"net/http/httptest"
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

// A device that is being added, and a pool that grows, do not end with the one who asked.
func TestBegunGoesOn(t *testing.T) {
	f := &fake{}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for _, e := range changes(f) {
		r := httptest.NewRequest(e.Method, e.Path+"?bytes=1&device=/dev/x", http.NoBody).WithContext(gone)
		e.Serve.ServeHTTP(httptest.NewRecorder(), r)
	}
	require.Equal(t, []string{"cleanup", "grow 1", "trim", "add /dev/x"}, f.told)
	require.Equal(t, []bool{true, false, true, false}, f.ended)
}

// Errors keep their class and text, before the first line and after it. It does not say the class once more, unless that is the reason.
func TestErrors(t *testing.T) {
	for _, class := range classes {
		err := fmt.Errorf("the reason: %w", class.err)
		want := "the reason"
		switch class.name {
		case "not-found", "canceled", "deadline-exceeded", "unknown":
			want = fmt.Sprint(err)
		}
		f := &fake{err: err, snapshots: []Snapshot{{Key: "one"}}}
		c := tClient(t, tServe(t, f))
		_, got := c.Status(t.Context())
		require.ErrorIs(t, got, class.err, class.name)
		require.EqualError(t, got, want)
		n := 0
		got = c.Snapshots(t.Context(), func(Snapshot) error { n++; return nil })
		require.ErrorIs(t, got, class.err, class.name)
		require.EqualError(t, got, want)
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
		require.NotEqual(t, "1", os.Getenv("LAMINA_TEST_ROOT"), "needs root, to be somebody else")
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
	dir, err := os.MkdirTemp("", "stop") //nolint:usetesting // a socket's path is short
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", filepath.Join(dir, "a"))
	require.NoError(t, err)
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
	f := &fake{hang: make(chan struct{}, quickAsked)}
	address := tServe(t, f)
	c := tClient(t, address)
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan error, quickAsked)
	for range quickAsked {
		go func() {
			_, err := c.Status(ctx)
			got <- err
		}()
	}
	for range quickAsked {
		<-f.hang
	}
	_, err := c.Status(t.Context())
	require.ErrorIs(t, err, errdefs.ErrUnavailable, "there are many already")
	cancel()
	for range quickAsked {
		require.ErrorIs(t, <-got, context.Canceled)
	}
	f.hang = nil
	require.Eventually(t, func() bool {
		_, err := c.Status(t.Context())
		return err == nil
	}, time.Minute, time.Millisecond)
}

// Walks that hang keep nobody from the status.
func TestSlotsOfTheirOwn(t *testing.T) {
	begun := make(chan struct{})
	hung := Lines("/hung", "", time.Hour, func(ctx context.Context, _ func(Space) error) error {
		begun <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	})
	c := tClient(t, tServe(t, &fake{}, hung))
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan error, longAsked)
	for range longAsked {
		go func() { got <- Ask(ctx, c, "/hung", time.Hour, func(Space) error { return nil }) }()
		<-begun
	}
	err := Ask(t.Context(), c, "/hung", time.Hour, func(Space) error { return nil })
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	require.ErrorContains(t, err, "2 of these requests are under way already")
	for range quickAsked {
		_, err := c.Status(t.Context())
		require.NoError(t, err)
	}
	require.NoError(t, c.Space(t.Context(), nil, func(Space) error { return nil }))
	cancel()
	for range longAsked {
		require.ErrorIs(t, <-got, context.Canceled)
	}
}

// A client that does not read is let go, and what it asked ends.
func TestSlowReader(t *testing.T) {
	ended := make(chan error, 1)
	endless := Lines("/endless", "", time.Hour, func(_ context.Context, each func(Space) error) error {
		for {
			if err := each(Space{Key: strings.Repeat("x", 1<<10)}); err != nil {
				ended <- err
				return err
			}
		}
	})
	g := gate{root: tRoot, writeTime: 50 * time.Millisecond}
	conn, err := new(net.Dialer).DialContext(t.Context(), "unix", tServeHandler(t, g.handler([]Endpoint{endless})))
	require.NoError(t, err)
	defer conn.Close()
	_, err = io.WriteString(conn, "GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
	require.NoError(t, err)
	select {
	case err := <-ended:
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	case <-time.After(30 * time.Second):
		t.Fatal("the daemon waits for a client that does not read")
	}
}

// Whoever reads what is cut off does not take it for all.
func TestReceiveCutOff(t *testing.T) {
	all := func(Snapshot) error { return nil }
	require.ErrorContains(t, receive(strings.NewReader("{\"key\":\"a\"}\n{\"key\":"), nil, all), "cut off")
	require.ErrorContains(t, receive(strings.NewReader("nonsense"), nil, all), "cut off")
	require.NoError(t, receive(strings.NewReader("{\"progress\":{\"done\":1,\"total\":2}}\n"), nil, all))

	w := &slowWriter{}
	before := time.Now()
	d := deadlineWriter{w, writeTime}
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
