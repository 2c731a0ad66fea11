package main

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/log"
)

// tBlocked serves a snapshotter whose Prepare calls block, starts one call, and waits until it is there.
func tBlocked(t *testing.T, block func(context.Context) error, finish, cancel time.Duration) (stop func() error, call <-chan error) {
	t.Helper()
	entered := make(chan struct{})
	fake := &fakeSnapshotter{prepare: func(ctx context.Context) error {
		close(entered)
		return block(ctx)
	}}
	logger, _ := tLogger(t, "info")
	s := newServer(newService(logger, map[string]snapshots.Snapshotter{"lamina": fake}))
	s.finishTime, s.cancelTime = finish, cancel
	conn, stop := tServe(t, s)
	result := make(chan error, 1)
	go func() {
		_, err := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "lamina").Prepare(t.Context(), "k", "")
		result <- err
	}()
	<-entered
	return stop, result
}

func TestStopWaitsForCalls(t *testing.T) {
	release := make(chan struct{})
	stop, call := tBlocked(t, func(ctx context.Context) error {
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}, time.Minute, time.Minute)
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	select {
	case err := <-stopped:
		t.Fatalf("stopped (%v) while a call was under way", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(release)
	if err := <-call; err != nil {
		t.Errorf("the call: %v", err)
	}
	if err := <-stopped; err != nil {
		t.Errorf("the stop: %v", err)
	}
}

func TestStopCancelsCalls(t *testing.T) {
	returned := make(chan struct{})
	stop, call := tBlocked(t, func(ctx context.Context) error {
		<-ctx.Done()
		close(returned)
		return ctx.Err()
	}, 10*time.Millisecond, time.Minute)
	if err := stop(); !errors.Is(err, errCut) {
		t.Errorf("the stop: %v", err)
	}
	select {
	case <-returned:
	default:
		t.Error("stopped before the cancelled call returned")
	}
	if err := <-call; err == nil {
		t.Error("the call was cut off without an error")
	}
}

// A call that not even its context ends, as one stuck in the kernel, must not keep the daemon.
func TestStopLeavesStuckCalls(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	stop, _ := tBlocked(t, func(context.Context) error {
		<-release
		return nil
	}, 10*time.Millisecond, 10*time.Millisecond)
	if err := stop(); !errors.Is(err, errCut) {
		t.Errorf("the stop: %v", err)
	}
}

// A client that connects and says nothing delays the stop, but is no call that is cut off.
func TestStopOutlivesSilentClient(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for greetTime")
	}
	path := tSocketPath(t)
	sock := mustListen(t, path)
	logger, _ := tLogger(t, "info")
	ctx, cancel := context.WithCancel(log.WithLogger(t.Context(), logger))
	result := make(chan error, 1)
	go func() { result <- newServer(newService(logger, nil)).run(ctx, sock) }()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Read(make([]byte, 1)); err != nil { // the server speaks first, so it has the connection
		t.Fatal(err)
	}
	cancel()
	if err := <-result; err != nil {
		t.Error(err)
	}
}

func TestNotifiesServiceManager(t *testing.T) {
	path := filepath.Join(filepath.Dir(filepath.Dir(tSocketPath(t))), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = manager.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	logger, _ := tLogger(t, "info")
	_, stop := tServe(t, newServer(newService(logger, nil)))
	read := func() string {
		buf := make([]byte, 100)
		if err := manager.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := manager.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
	if got := read(); got != "READY=1" {
		t.Errorf("first %q", got)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if got := read(); got != "STOPPING=1" {
		t.Errorf("then %q", got)
	}
}
