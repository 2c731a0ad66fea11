package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/metadata"
)

// needRoot skips a test that mounts, unless the environment says that it must be able to.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv("LAMINA_TEST_ROOT") == "1" {
		t.Fatal("LAMINA_TEST_ROOT is set, but this is not root")
	}
	t.Skip("opening a union root tries a mount, which needs root")
}

// A daemon is "lamina serve" in this process.
type daemonRun struct {
	stop   context.CancelFunc // what a signal does
	code   chan int
	stderr *logBuffer
}

func startDaemon(t *testing.T, args ...string) *daemonRun {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	d := &daemonRun{stop: cancel, code: make(chan int, 1), stderr: &logBuffer{}}
	go func() {
		d.code <- run(ctx, append([]string{"lamina", "serve"}, args...), new(bytes.Buffer), d.stderr)
	}()
	return d
}

// wait stops the daemon and returns its exit code.
func (d *daemonRun) wait(t *testing.T) int {
	t.Helper()
	d.stop()
	select {
	case code := <-d.code:
		return code
	case <-time.After(time.Minute):
		t.Fatal("the daemon does not stop")
		return 0
	}
}

// tProxy waits until the daemon answers.
func tProxy(t *testing.T, d *daemonRun, address, name string) snapshots.Snapshotter {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for time.Now().Before(deadline) {
		if _, err := os.Lstat(address); err == nil {
			return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(mustDial(t, address)), name)
		}
		select {
		case code := <-d.code:
			t.Fatalf("exit code %d: %q", code, d.stderr.lines())
		case <-time.After(5 * time.Millisecond):
		}
	}
	t.Fatal("the daemon does not start")
	return nil
}

func TestServe(t *testing.T) {
	needRoot(t)
	root, address := filepath.Join(t.TempDir(), "root"), tSocketPath(t)
	config := tFile(t, fmt.Sprintf("root = %q\naddress = %q\n[snapshotters.one]\n[snapshotters.two]\n", root, address))
	d := startDaemon(t, "--config", config)
	one := tProxy(t, d, address, "one")
	two := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(mustDial(t, address)), "two")

	if _, err := one.Prepare(t.Context(), "active", ""); err != nil {
		t.Fatal(err)
	}
	if err := one.Commit(t.Context(), "layer", "active"); err != nil {
		t.Fatal(err)
	}
	if _, err := one.View(t.Context(), "view", "layer"); err != nil {
		t.Fatal(err)
	}
	if err := one.Remove(t.Context(), "layer"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("removing a parent: %v", err)
	}
	if _, err := two.Stat(t.Context(), "layer"); !errdefs.IsNotFound(err) {
		t.Errorf("the names share keys: %v", err)
	}
	tSecondDaemon(t, root, address)
	if code := d.wait(t); code != exitOK {
		t.Fatalf("exit code %d: %q", code, d.stderr.lines())
	}
	if _, err := os.Lstat(address); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket after the stop: %v", err)
	}

	d = startDaemon(t, "--config", config)
	one = tProxy(t, d, address, "one")
	var names []string
	if err := one.Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
		names = append(names, info.Name)
		return nil
	}); err != nil || len(names) != 2 {
		t.Errorf("after a restart: %q, %v", names, err)
	}
	for _, key := range []string{"view", "layer"} {
		if err := one.Remove(t.Context(), key); err != nil {
			t.Error(err)
		}
	}
	if err := one.(snapshots.Cleaner).Cleanup(t.Context()); err != nil {
		t.Error(err)
	}
	if code := d.wait(t); code != exitOK {
		t.Errorf("exit code %d: %q", code, d.stderr.lines())
	}
}

// tSecondDaemon checks that neither the root nor the address of a running daemon can be had, and that trying does not
// harm it.
func tSecondDaemon(t *testing.T, root, address string) {
	t.Helper()
	for _, args := range [][]string{
		{"--root", root, "--address", address + "2"},
		{"--root", filepath.Join(t.TempDir(), "other"), "--address", address},
	} {
		d := startDaemon(t, append(args, "--config", tFile(t, ""))...)
		select {
		case code := <-d.code:
			if lines := strings.Join(d.stderr.lines(), "\n"); code != exitInUse {
				t.Errorf("%q: exit code %d: %s", args, code, lines)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%q: it runs", args)
		}
	}
	if _, err := os.Lstat(address); err != nil {
		t.Error(err)
	}
}

// A signal before the daemon serves is no failure to be reported as one of the root.
func TestServeStoppedEarly(t *testing.T) {
	needRoot(t)
	d := startDaemon(t, "--config", tFile(t, ""), "--root", filepath.Join(t.TempDir(), "root"), "--address", tSocketPath(t))
	if code := d.wait(t); code != exitOK {
		t.Errorf("exit code %d: %q", code, d.stderr.lines())
	}
}

// A signal ends a start that waits for who reads the store, as any other start.
func TestSignalWhileReadersAreWaitedFor(t *testing.T) {
	needRoot(t)
	root, config := tLockedRoot(t), tFile(t, "[snapshotters.lamina]\nbackend = \"thin\"\n")
	reader := filepath.Join(t.TempDir(), "root")
	require.NoError(t, os.CopyFS(reader, os.DirFS(root)))
	store, err := metadata.Open(filepath.Join(reader, "lamina.db"), metadata.Options{ReadOnly: true})
	require.NoError(t, err)
	defer store.Close()
	for line, want := range map[string]int{"serve": exitOK, "pool create": exitInterrupted} {
		ctx, signal := context.WithCancel(t.Context())
		time.AfterFunc(200*time.Millisecond, signal) // it waits for 10 s
		var stderr logBuffer
		args := append([]string{"lamina"}, strings.Fields(line)...)
		code := run(ctx, append(args, "--config", config, "--root", reader, "--address", tSocketPath(t), "--admin-address="), io.Discard, &stderr)
		require.Equal(t, want, code, "%s: %q", line, stderr.lines())
	}
}
