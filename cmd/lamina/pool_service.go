package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/lamina-snapshotter/lamina"
)

// The pool's service has one method, beside the snapshots API on the same socket. A request is a list of two strings: the root
// that is meant, and the device.
const (
	poolService = "lamina.v1.Pool"
	poolMethod  = "/" + poolService + "/Add"
)

// A poolHost is what the pool's service serves: a lamina.Host.
type poolHost interface {
	Config() lamina.Config
	AddDevice(ctx context.Context, device string) error
}

func registerPool(server *grpc.Server, host poolHost) {
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: poolService,
		HandlerType: (*poolHost)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "Add", Handler: serveAdd}},
	}, host)
}

func serveAdd(service any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) { //nolint:revive // the order is grpc's
	host, ok := service.(poolHost)
	if !ok {
		return nil, fmt.Errorf("%T has no pool", service)
	}
	var request structpb.ListValue
	if err := decode(&request); err != nil {
		return nil, err
	}
	values := request.GetValues()
	if len(values) != 2 {
		return nil, fmt.Errorf("a request of %d values, not of a root and a device", len(values))
	}
	if root, served := values[0].GetStringValue(), host.Config().Root; root != served {
		return nil, fmt.Errorf("the daemon has the root %s, not %s", served, root)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return new(emptypb.Empty), errgrpc.ToGRPC(host.AddDevice(ctx, values[1].GetStringValue()))
}

// askToAdd has the daemon at an address take a device into the pool of the root that it has open.
func askToAdd(ctx context.Context, address, root, device string) (err error) {
	conn, err := dial(address)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	request, err := structpb.NewList([]any{root, device})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return errgrpc.ToNative(conn.Invoke(ctx, poolMethod, request, new(emptypb.Empty)))
}
