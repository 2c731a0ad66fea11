package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/dialer"
	"github.com/containerd/log"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
)

// serveCommand is what this program is called with for a peer behind a socket.
const serveCommand = "serve"

// serve is the process of a proxied peer: containerd's service over its own snapshotter, as docs/PLUGINS.md of containerd has it.
func serve(ctx context.Context, args []string) error {
	if len(args) != 3 {
		return errUsage
	}
	name, dir, socket := args[0], args[1], args[2]
	log.L.Logger.SetOutput(io.Discard)
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
	cmd := exec.CommandContext(context.WithoutCancel(ctx), "/proc/self/exe", serveCommand, name, dir, socket)
	return openBehind(ctx, &peer{name: proxiedOf(name), kind: kinds[name]}, name, socket, cmd)
}

// A daemon is a Lamina with its configuration, which runs or not.
type daemon struct {
	program, dir string
	env          []string // besides this program's
	process      *process // nil if it does not
}

func (d *daemon) root() string   { return filepath.Join(d.dir, "root") }
func (d *daemon) socket() string { return filepath.Join(d.dir, "sock") }
func (d *daemon) config() string { return filepath.Join(d.dir, "config.toml") }

// newDaemon returns one that has nothing set but where things are, the backend, and what more says.
func newDaemon(program, dir, name, backend, more string) (*daemon, error) {
	d := &daemon{program: program, dir: dir}
	config := fmt.Sprintf("root = %q\naddress = %q\nsnapshotters.%s.backend = %q\n%s", d.root(), d.socket(), name, backend, more)
	return d, os.WriteFile(d.config(), []byte(config), 0o600)
}

func (d *daemon) command(ctx context.Context) *exec.Cmd {
	cmd := exec.CommandContext(context.WithoutCancel(ctx), d.program, "serve", "--config", d.config(), "--log-level", "warn")
	cmd.Stderr = os.Stderr
	cmd.Env = append(os.Environ(), d.env...)
	return cmd
}

// start starts it, and returns when it listens.
func (d *daemon) start(ctx context.Context) error {
	p, err := start(ctx, laminaName, d.command(ctx))
	if err != nil {
		return err
	}
	d.process = p
	if err := p.await(ctx, d.socket()); err != nil {
		return errors.Join(err, d.stop())
	}
	return nil
}

// stop ends it, if it runs.
func (d *daemon) stop() error { return d.end((*process).stop) }

// kill ends it as a crash does.
func (d *daemon) kill() error { return d.end((*process).kill) }

func (d *daemon) end(how func(*process) error) error {
	p := d.process
	if p == nil {
		return nil
	}
	d.process = nil
	return how(p)
}

// laminaName is what its daemon calls the snapshotter.
const laminaName = "lamina"

// syncOff is how overlayfs has it, which syncs nothing.
const syncOff = "[union]\nsync = \"off\"\n"

// openLamina starts the daemon as it is without a configuration, but with layers that are not synced.
func openLamina(ctx context.Context, s settings, name, backend, dir string) (*peer, error) {
	d, err := newDaemon(s.lamina, dir, laminaName, backend, syncOff)
	if err == nil && s.views > 0 {
		err = d.giveViews(ctx, s.views)
	}
	if err != nil {
		return nil, err
	}
	return openBehind(ctx, &peer{name: name}, laminaName, d.socket(), d.command(ctx))
}

// giveViews gives a new daemon, which does not run, a layer and n views of it.
func (d *daemon) giveViews(ctx context.Context, n int) error {
	err := d.start(ctx)
	if err == nil {
		err = d.call(func(sn snapshots.Snapshotter) error { return makeBase(ctx, sn) })
	}
	if err = errors.Join(err, d.stop()); err != nil {
		return err
	}
	return recordViews(ctx, d.root(), []string{base}, 0, n)
}

// openBehind starts a program that serves a snapshotter on a socket, and waits until it listens.
func openBehind(ctx context.Context, p *peer, snapshotter, socket string, cmd *exec.Cmd) (*peer, error) {
	cmd.Stderr = os.Stderr
	process, err := start(ctx, p.name, cmd)
	if err != nil {
		return nil, err
	}
	conn, err := dial(socket)
	if err == nil {
		err = process.await(ctx, socket)
	}
	if err != nil {
		return nil, errors.Join(err, process.stop())
	}
	p.Snapshotter = proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), snapshotter)
	p.close = func() error { return errors.Join(conn.Close(), process.stop()) }
	return p, nil
}

// dial connects as containerd does to its proxy plugins (cmd/containerd/server, getClient), but without its handler for
// OpenTelemetry, which costs some microseconds of a call, and Lamina's peer behind a socket the same.
func dial(socket string) (*grpc.ClientConn, error) {
	const maxDelay = 3 * time.Second
	wait := backoff.DefaultConfig
	wait.MaxDelay = maxDelay
	return grpc.NewClient(dialer.DialAddress(socket),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: wait}),
		grpc.WithContextDialer(dialer.ContextDialer),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(defaults.DefaultMaxRecvMsgSize), grpc.MaxCallSendMsgSize(defaults.DefaultMaxSendMsgSize)),
	)
}
