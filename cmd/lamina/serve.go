package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/log"
	"github.com/urfave/cli/v3"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/admin"
)

func newServe() *cli.Command {
	return &cli.Command{
		Name:  "serve",
		Usage: "run the daemon",
		Description: "SIGTERM or SIGINT stops it: no more calls are taken, those under way get 30 s to finish. " +
			"A second signal ends it at once.\n\n" + exitCodes,
		Flags: append(settingsFlags(), &cli.StringFlag{
			Name: "pprof", Usage: "serve profiles of the daemon on `ADDRESS`, whatever the file says: /PATH or unix:/PATH, 127.0.0.1:PORT, [::1]:PORT",
		}),
		Action: func(ctx context.Context, c *cli.Command) error {
			ctx, s, err := loadLogged(ctx, c)
			if err != nil {
				return err
			}
			return serve(ctx, s)
		},
	}
}

// serve runs the daemon until ctx ends. It takes the root before the socket, so that a daemon that cannot have the root
// never stands in the way of the one that has; and gives up the socket last, when the root is closed.
func serve(ctx context.Context, s settings) (err error) {
	seen, err := openObserved(ctx, s)
	if err != nil {
		return unlessStopped(ctx, err)
	}
	defer func() { err = errors.Join(err, seen.close(ctx)) }()
	host, err := lamina.Open(ctx, s.Config)
	if err != nil {
		return unlessStopped(ctx, err)
	}
	served, err := snapshotters(host)
	if err != nil {
		return errors.Join(err, host.Close())
	}
	containerd, err := dialContainerd(s.Containerd.Address)
	if err != nil {
		return errors.Join(fmt.Errorf("containerd.address: %w", err), host.Close())
	}
	sock, err := listen(ctx, "address", s.Address)
	if err != nil {
		return errors.Join(unlessStopped(ctx, err), containerd.Close(), host.Close())
	}
	operators, err := openAdmin(ctx, s.Admin.Address, adminHandler(host, s, seen)) //nolint:contextcheck // a change that has begun goes on without its client
	if err != nil {
		return errors.Join(unlessStopped(ctx, err), containerd.Close(), host.Close(), sock.release())
	}
	seen.metrics.SetSource(host)
	log.G(ctx).WithFields(log.Fields{
		"version":      buildVersion(),
		"root":         s.Root,
		"address":      s.Address,
		"admin":        s.Admin.Address,
		"snapshotters": host.Names(),
	}).Info("serving")
	defer context.AfterFunc(ctx, host.StopDeleting)()
	service := newService(log.G(ctx), served)
	service.metrics, service.memory.pages = seen.metrics, host.GiveBack
	service.memory.answered() // the start has read all of the store
	server := newServer(service, seen.tracer.options()...)
	registerDiff(server.grpc, log.G(ctx), seen.metrics, host, containerd)
	err = server.run(ctx, sock)
	err = errors.Join(err, operators.close(ctx)) // which answers until then, and uses the host
	seen.metrics.SetSource(nil)
	err = errors.Join(err, containerd.Close(), host.Close(), sock.release())
	if err == nil {
		log.G(ctx).Info("stopped")
	}
	return err
}

// adminHandler is what operators ask of a host.
func adminHandler(host *lamina.Host, s settings, seen *observed) http.Handler {
	return admin.Handler(s.Root, described{host, s}, host, append(doctorEndpoints(host), seen.endpoint())...)
}

// unlessStopped returns err, or nil if it only says that a signal came before the daemon served: it is stopped, as asked.
func unlessStopped(ctx context.Context, err error) error {
	if ctx.Err() == nil || !errors.Is(err, ctx.Err()) {
		return err
	}
	log.G(ctx).Info("stopped before it served")
	return nil
}

// snapshotters returns those of the host by their names.
func snapshotters(host *lamina.Host) (map[string]snapshots.Snapshotter, error) {
	byName := make(map[string]snapshots.Snapshotter)
	for _, name := range host.Names() {
		sn, err := host.Snapshotter(name)
		if err != nil {
			return nil, fmt.Errorf("snapshotters.%s: %w", name, err)
		}
		byName[name] = sn
	}
	return byName, nil
}
