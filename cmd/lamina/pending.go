package main

import (
	"context"

	"github.com/containerd/errdefs"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/admin"
)

type stoppedSource struct{ admin.Source }

func (stoppedSource) Close() error { return nil }

func openStopped(context.Context, lamina.Config) (stoppedSource, error) {
	return stoppedSource{}, errdefs.ErrNotImplemented
}

type operated struct {
	admin.Source
	admin.Changer
}

func operatedHost(*lamina.Host) operated { return operated{} }
