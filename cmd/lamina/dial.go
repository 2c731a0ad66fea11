package main

import (
	"context"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// dial returns a connection to the unix socket at a path, which is made with the first call. In a target of gRPC's, which is a URL, a path
// could not have every byte.
func dial(address string, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	connect := func(ctx context.Context, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", address)
	}
	return grpc.NewClient("passthrough:///localhost", append(opts,
		grpc.WithContextDialer(connect), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
}
