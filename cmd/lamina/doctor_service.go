package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/doctor"
)

// The doctor's service has two methods, beside the snapshots API on the same socket. A request is the root that is meant,
// a StringValue; the answer a stream of findings, or of what volumes have of the pool, each a StringValue with the JSON object
// that the command prints.
const (
	doctorService = "lamina.v1.Doctor"
	examineMethod = "Examine"
	usageMethod   = "Usage"
)

// An examiner is what the doctor's service serves: a lamina.Host.
type examiner interface {
	Config() lamina.Config
	Examine(ctx context.Context, found func(doctor.Finding)) error
	Usage(ctx context.Context, each func(doctor.Usage)) error
}

func registerDoctor(server *grpc.Server, host examiner) {
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: doctorService,
		HandlerType: (*examiner)(nil),
		Streams: []grpc.StreamDesc{
			{StreamName: examineMethod, Handler: serveExamine, ServerStreams: true},
			{StreamName: usageMethod, Handler: serveUsage, ServerStreams: true},
		},
	}, host)
}

func serveExamine(service any, stream grpc.ServerStream) error {
	return answer(service, stream, examiner.Examine)
}

func serveUsage(service any, stream grpc.ServerStream) error {
	return answer(service, stream, examiner.Usage)
}

// answer answers a call with what look tells.
func answer[T any](service any, stream grpc.ServerStream, look func(host examiner, ctx context.Context, each func(T)) error) error {
	host, ok := service.(examiner)
	if !ok {
		return fmt.Errorf("%T does not examine", service)
	}
	var root wrapperspb.StringValue
	if err := stream.RecvMsg(&root); err != nil {
		return err
	}
	if served := host.Config().Root; root.GetValue() != served {
		return fmt.Errorf("the daemon has the root %s, not %s", served, root.GetValue())
	}
	var failed error
	err := look(host, stream.Context(), func(one T) {
		line, err := json.Marshal(one)
		if err == nil && failed == nil {
			err = stream.SendMsg(wrapperspb.String(string(line)))
		}
		failed = errors.Join(failed, err)
	})
	return errgrpc.ToGRPC(errors.Join(err, failed))
}

// askDaemon calls a method of the doctor of the daemon at an address, for the root that it has open.
func askDaemon[T any](ctx context.Context, method, address, root string, found func(T)) (err error) {
	conn, err := dial(address)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/"+doctorService+"/"+method)
	if err != nil {
		return errgrpc.ToNative(err)
	}
	if err := errors.Join(stream.SendMsg(wrapperspb.String(root)), stream.CloseSend()); err != nil && !errors.Is(err, io.EOF) {
		return errgrpc.ToNative(err)
	}
	for {
		var line wrapperspb.StringValue
		err := stream.RecvMsg(&line)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return errgrpc.ToNative(err)
		}
		var f T
		if err := json.Unmarshal([]byte(line.GetValue()), &f); err != nil {
			return err
		}
		found(f)
	}
}
