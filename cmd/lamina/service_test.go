package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// A fakeSnapshotter answers what the test set it to. What it was not set to panics.
type fakeSnapshotter struct {
	snapshots.Snapshotter

	infos   []snapshots.Info
	err     error // of every method
	walkErr error // after the infos
	prepare func(context.Context) error
	parent  string // of the last Commit
}

func (f *fakeSnapshotter) Stat(_ context.Context, key string) (snapshots.Info, error) {
	for _, info := range f.infos {
		if info.Name == key {
			return info, f.err
		}
	}
	return snapshots.Info{}, errors.Join(f.err, fmt.Errorf("snapshot %q: %w", key, errdefs.ErrNotFound))
}

func (f *fakeSnapshotter) Walk(ctx context.Context, fn snapshots.WalkFunc, _ ...string) error {
	for _, info := range f.infos {
		if err := fn(ctx, info); err != nil {
			return err
		}
	}
	return errors.Join(f.err, f.walkErr)
}

func (f *fakeSnapshotter) Prepare(ctx context.Context, key, _ string, _ ...snapshots.Opt) ([]mount.Mount, error) {
	if f.prepare != nil {
		return nil, f.prepare(ctx)
	}
	return []mount.Mount{{Type: "bind", Source: "/" + key}}, f.err
}

func (f *fakeSnapshotter) Commit(_ context.Context, _, _ string, opts ...snapshots.Opt) error {
	var info snapshots.Info
	for _, opt := range opts {
		if err := opt(&info); err != nil {
			return err
		}
	}
	f.parent = info.Parent
	return f.err
}

func (f *fakeSnapshotter) Remove(context.Context, string) error { return f.err }
func (f *fakeSnapshotter) Cleanup(context.Context) error        { return f.err }
func (f *fakeSnapshotter) Usage(context.Context, string) (snapshots.Usage, error) {
	return snapshots.Usage{Size: 7, Inodes: 3}, f.err
}

// A logBuffer is where a server under test writes its log.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// lines returns what has been logged since the last call.
func (b *logBuffer) lines() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer b.buf.Reset()
	return strings.Split(strings.TrimSuffix(b.buf.String(), "\n"), "\n")[:bytes.Count(b.buf.Bytes(), []byte("\n"))]
}

func tLogger(t *testing.T, level string) (*log.Entry, *logBuffer) {
	t.Helper()
	var b logBuffer
	logger, err := newLogger(&b, logSettings{Level: level, Format: "text"})
	if err != nil {
		t.Fatal(err)
	}
	return logger, &b
}

// tServe serves the snapshotters on a socket and returns a connection to it and a func that stops the server.
func tServe(t *testing.T, s *server) (conn *grpc.ClientConn, stop func() error) {
	t.Helper()
	path := tSocketPath(t)
	sock := mustListen(t, path)
	quiet, _ := tLogger(t, "info")
	ctx, cancel := context.WithCancel(log.WithLogger(t.Context(), quiet))
	result := make(chan error, 1)
	go func() { result <- s.run(ctx, sock) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-result
	})
	t.Cleanup(func() { _ = stop() })
	return mustDial(t, path), stop
}

func mustDial(t *testing.T, path string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+path,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", addr)
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// tClient serves the snapshotters and returns containerd's proxy for one of the names.
func tClient(t *testing.T, logger *log.Entry, byName map[string]snapshots.Snapshotter, name string) snapshots.Snapshotter {
	t.Helper()
	conn, _ := tServe(t, newServer(newService(logger, byName)))
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), name)
}

func TestNamesPickSnapshotter(t *testing.T) {
	logger, _ := tLogger(t, "info")
	conn, _ := tServe(t, newServer(newService(logger, map[string]snapshots.Snapshotter{
		"one": &fakeSnapshotter{infos: []snapshots.Info{{Name: "first"}}},
		"two": &fakeSnapshotter{infos: []snapshots.Info{{Name: "second"}}},
	})))
	client := snapshotsapi.NewSnapshotsClient(conn)
	for name, key := range map[string]string{"one": "first", "two": "second"} {
		if _, err := proxy.NewSnapshotter(client, name).Stat(t.Context(), key); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"", "three"} {
		sn := proxy.NewSnapshotter(client, name)
		_, err := sn.Stat(t.Context(), "first")
		walkErr := sn.Walk(t.Context(), func(context.Context, snapshots.Info) error { return nil })
		for _, err := range []error{err, walkErr} {
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(fmt.Sprint(err), "one, two") {
				t.Errorf("name %q: %v", name, err)
			}
		}
	}
}

func TestErrorsKeepTheirClass(t *testing.T) {
	for _, class := range []error{
		errdefs.ErrNotFound, errdefs.ErrAlreadyExists, errdefs.ErrFailedPrecondition, errdefs.ErrInvalidArgument,
		errdefs.ErrResourceExhausted, errdefs.ErrUnavailable, errdefs.ErrNotImplemented, errdefs.ErrDataLoss,
		context.DeadlineExceeded, context.Canceled, errdefs.ErrUnknown,
	} {
		logger, _ := tLogger(t, "info")
		fake := &fakeSnapshotter{err: fmt.Errorf("about %q: %w", "k", class), infos: []snapshots.Info{{Name: "k"}}}
		sn := tClient(t, logger, map[string]snapshots.Snapshotter{"lamina": fake}, "lamina")
		cleaner, ok := sn.(snapshots.Cleaner)
		if !ok {
			t.Fatal("containerd's proxy is no Cleaner")
		}
		_, prepareErr := sn.Prepare(t.Context(), "k", "")
		_, statErr := sn.Stat(t.Context(), "k")
		_, usageErr := sn.Usage(t.Context(), "k")
		for name, err := range map[string]error{
			"Prepare": prepareErr,
			"Stat":    statErr,
			"Usage":   usageErr,
			"Commit":  sn.Commit(t.Context(), "name", "k"),
			"Remove":  sn.Remove(t.Context(), "k"),
			"Cleanup": cleaner.Cleanup(t.Context()),
			"Walk":    sn.Walk(t.Context(), func(context.Context, snapshots.Info) error { return nil }),
		} {
			if !errors.Is(err, class) || !strings.Contains(err.Error(), `about "k"`) {
				t.Errorf("%s: %v becomes %v", name, fake.err, err)
			}
		}
	}
}

func TestWalkStreams(t *testing.T) {
	logger, logs := tLogger(t, "info")
	fake := &fakeSnapshotter{}
	for i := range 250 {
		fake.infos = append(fake.infos, snapshots.Info{Name: fmt.Sprint(i), Labels: map[string]string{"i": fmt.Sprint(i)}})
	}
	sn := tClient(t, logger, map[string]snapshots.Snapshotter{"lamina": fake}, "lamina")
	seen := 0
	count := func(_ context.Context, info snapshots.Info) error {
		if info.Name != fmt.Sprint(seen) || info.Labels["i"] != info.Name {
			t.Errorf("at %d: %+v", seen, info)
		}
		seen++
		return nil
	}
	if err := sn.Walk(t.Context(), count); err != nil || seen != 250 {
		t.Errorf("%d seen, %v", seen, err)
	}
	seen, fake.walkErr = 0, errdefs.ErrResourceExhausted
	if err := sn.Walk(t.Context(), count); !errdefs.IsResourceExhausted(err) || seen != 200 {
		t.Errorf("%d seen, %v", seen, err)
	}
	if lines := logs.lines(); len(lines) != 1 || !strings.Contains(lines[0], "method=List") {
		t.Errorf("log is %q", lines)
	}
}

func TestRequestsArriveWhole(t *testing.T) {
	logger, _ := tLogger(t, "info")
	fake := &fakeSnapshotter{}
	sn := tClient(t, logger, map[string]snapshots.Snapshotter{"lamina": fake}, "lamina")
	if err := sn.Commit(t.Context(), "name", "key", snapshots.WithParent("base")); err != nil || fake.parent != "base" {
		t.Errorf("parent %q, %v", fake.parent, err)
	}
	// More than gRPC's own limit, within containerd's.
	labels := map[string]string{"big": strings.Repeat("x", 8<<20)}
	mounts, err := sn.Prepare(t.Context(), "key", "", snapshots.WithLabels(labels))
	if err != nil || len(mounts) != 1 || mounts[0].Source != "/key" {
		t.Errorf("%v, %v", mounts, err)
	}
}

// A request without info would be a nil pointer in the contrib service.
func TestUpdateWithoutInfo(t *testing.T) {
	logger, _ := tLogger(t, "info")
	conn, _ := tServe(t, newServer(newService(logger, map[string]snapshots.Snapshotter{"lamina": &fakeSnapshotter{}})))
	_, err := snapshotsapi.NewSnapshotsClient(conn).Update(t.Context(), &snapshotsapi.UpdateSnapshotRequest{Snapshotter: "lamina"})
	if status.Code(err) != codes.InvalidArgument {
		t.Error(err)
	}
}

func TestLogLines(t *testing.T) {
	for _, tc := range []struct {
		name, level string
		err         error
		want        []string // in the one line; none if there is to be none
	}{
		{"good", "info", nil, nil},
		{"good at debug", "debug", nil, []string{"level=debug", "method=Remove", "key=k"}},
		{"expected", "info", errdefs.ErrNotFound, []string{
			"level=info", "class=NotFound", "method=Remove", "snapshotter=lamina", "key=k", "namespace=k8s.io", "duration=", `error="not found"`,
		}},
		{"has children", "info", errdefs.ErrFailedPrecondition, []string{"level=info", "class=FailedPrecondition"}},
		{"expected at warn", "warn", errdefs.ErrNotFound, nil},
		{"failure", "warn", errors.New("disk on fire"), []string{"level=error", "class=Unknown", `error="disk on fire"`}},
		{"full", "warn", errdefs.ErrResourceExhausted, []string{"level=error", "class=ResourceExhausted"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			logger, logs := tLogger(t, tc.level)
			conn, stop := tServe(t, newServer(newService(logger, map[string]snapshots.Snapshotter{"lamina": &fakeSnapshotter{err: tc.err}})))
			ctx := namespaces.WithNamespace(t.Context(), "k8s.io")
			err := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "lamina").Remove(ctx, "k")
			if (err == nil) != (tc.err == nil) {
				t.Fatal(err)
			}
			if err := stop(); err != nil { // after it the line is written
				t.Fatal(err)
			}
			lines := logs.lines()
			if len(lines) != min(len(tc.want), 1) {
				t.Fatalf("%d lines: %q", len(lines), lines)
			}
			for _, want := range tc.want {
				if !strings.Contains(lines[0], want) {
					t.Errorf("%q is not in %q", want, lines[0])
				}
			}
		})
	}
}

func TestCallIsBounded(t *testing.T) {
	logger, _ := tLogger(t, "info")
	s := newService(logger, map[string]snapshots.Snapshotter{"lamina": &fakeSnapshotter{
		prepare: func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		},
	}})
	s.timeout = 10 * time.Millisecond
	conn, _ := tServe(t, newServer(s))
	_, err := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "lamina").Prepare(t.Context(), "k", "")
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}
