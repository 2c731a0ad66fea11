package main

import (
	"context"

	"github.com/containerd/errdefs"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/admin"
)

type stoppedRoot struct{ lamina.Stopped }

func (stoppedRoot) Space(context.Context, func(done, total int), func(admin.Space) error) error {
	return errdefs.ErrNotImplemented
}

type operated struct{ *lamina.Host }

func (operated) Space(context.Context, func(done, total int), func(admin.Space) error) error {
	return errdefs.ErrNotImplemented
}

func (operated) Cleanup(context.Context) error { return errdefs.ErrNotImplemented }
func (operated) GrowPool(context.Context, uint64) (p admin.Pool, err error) {
	return p, errdefs.ErrNotImplemented
}
func (operated) TrimPool(context.Context) (uint64, error) { return 0, errdefs.ErrNotImplemented }
