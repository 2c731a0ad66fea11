package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
)

const (
	serveCommand = "serve" // what this program is called with for a peer behind a socket

	startTime = time.Minute
	stopTime  = time.Minute
)

// serve is the process of a proxied peer: containerd's service over its own snapshotter, as docs/PLUGINS.md of containerd has it.
func serve(ctx context.Context, args []string) error {
	if len(args) != 3 {
		return errUsage
	}
	name, dir, socket := args[0], args[1], args[2]
	p, err := openContainerd(context.WithoutCancel(ctx), name, dir)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(p.Snapshotter))
	l, err := new(net.ListenConfig).Listen(ctx, "unix", socket)
	if err != nil {
		return errors.Join(err, p.close())
	}
	defer context.AfterFunc(ctx, server.GracefulStop)()
	return errors.Join(server.Serve(l), p.close())
}

func openProxied(ctx context.Context, name, dir string) (*peer, error) {
	socket := filepath.Join(dir, "sock")
	return openBehind(ctx, name, name+", proxied", socket, "/proc/self/exe", serveCommand, name, dir, socket)
}

// laminaName is what its daemon calls the snapshotter.
const laminaName = "lamina"

// openLamina starts the daemon, with nothing set but where things are and the backend.
func openLamina(ctx context.Context, s settings, dir string) (*peer, error) {
	root, socket, file := filepath.Join(dir, "root"), filepath.Join(dir, "sock"), filepath.Join(dir, "config.toml")
	config := fmt.Sprintf("root = %q\naddress = %q\n[snapshotters.%s]\nbackend = %q\n", root, socket, laminaName, s.backend)
	if s.backend == union {
		config += "[union]\nsync = \"off\"\n" // as overlayfs, which syncs nothing
	}
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, err
	}
	return openBehind(ctx, laminaName, "lamina", socket, s.lamina, "serve", "--config", file)
}

// openBehind starts a program that serves a snapshotter on a socket, and waits until it answers.
func openBehind(ctx context.Context, snapshotter, name, socket, program string, args ...string) (*peer, error) {
	cmd := exec.CommandContext(context.WithoutCancel(ctx), program, args...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err == nil {
		err = await(ctx, conn)
	}
	stop := func() error {
		timer := time.AfterFunc(stopTime, func() { _ = cmd.Process.Kill() })
		defer timer.Stop()
		return errors.Join(conn.Close(), cmd.Process.Signal(syscall.SIGTERM), cmd.Wait())
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, errors.Join(err, stop()))
	}
	return &peer{Snapshotter: proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), snapshotter), name: name, close: stop}, nil
}

// await waits until somebody listens. It asks for a service that neither has: that it answers is enough.
func await(ctx context.Context, conn *grpc.ClientConn) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	_, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{}, grpc.WaitForReady(true))
	if ctx.Err() != nil {
		return fmt.Errorf("it does not answer: %w", err)
	}
	return nil
}
