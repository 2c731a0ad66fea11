package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/containerd/log"

	"github.com/lamina-snapshotter/lamina/admin"
)

// An adminSocket answers operators while it is open.
type adminSocket struct {
	server *admin.Server
	socket *socket
	served chan struct{}
}

// openAdmin listens at an address, or nowhere if it is empty.
func openAdmin(ctx context.Context, address string, h http.Handler) (*adminSocket, error) {
	if address == "" {
		return nil, nil //nolint:nilnil // close takes a nil
	}
	s, err := listen(ctx, "admin.address", address)
	if err != nil {
		return nil, err
	}
	a := &adminSocket{server: admin.NewServer(ctx, h), socket: s, served: make(chan struct{})}
	go func() {
		defer close(a.served)
		if err := a.server.Serve(s); err != nil {
			log.G(ctx).WithError(err).Error("the admin socket is served no more") // the snapshots are
		}
	}()
	return a, nil
}

// close cuts off what is asked. What does not return is stuck in the kernel, and what it uses must not be waited for either: errCut.
func (a *adminSocket) close(ctx context.Context) error {
	if a == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cancelTime)
	defer cancel()
	err := a.server.Stop(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("%w of the admin socket: %w", errCut, err)
	}
	<-a.served
	return errors.Join(err, a.socket.release())
}
