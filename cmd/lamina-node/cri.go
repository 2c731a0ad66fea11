package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/containerd/api/services/introspection/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

const (
	containerdSocket = "/run/containerd/containerd.sock"
	// answerTimeout is how long a containerd that systemd calls started may take to answer.
	answerTimeout = time.Minute
	retryPeriod   = 100 * time.Millisecond
)

// criServes asks containerd whether its CRI plugin runs. It starts without one, and only logs why.
func criServes(ctx context.Context, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: retryPeriod, Multiplier: 1.5, MaxDelay: time.Second}}))
	if err != nil {
		return err
	}
	answer, err := plugins(ctx, introspection.NewIntrospectionClient(conn))
	if err := errors.Join(err, conn.Close()); err != nil {
		return fmt.Errorf("containerd, by %s: %w", socket, err)
	}
	if len(answer.Plugins) == 0 {
		return &refusalError{errors.New("containerd has no CRI plugin")}
	}
	if failed := answer.Plugins[0].InitErr; failed != nil {
		return &refusalError{fmt.Errorf("containerd's CRI plugin did not start: %s", failed.Message)}
	}
	return nil
}

// plugins asks until it has an answer: for a moment after its start containerd may not be reached.
func plugins(ctx context.Context, client introspection.IntrospectionClient) (*introspection.PluginsResponse, error) {
	request := &introspection.PluginsRequest{Filters: []string{"type==io.containerd.grpc.v1,id==cri"}}
	for {
		answer, err := client.Plugins(ctx, request, grpc.WaitForReady(true))
		if status.Code(err) != codes.Unavailable {
			return answer, err
		}
		select {
		case <-time.After(retryPeriod):
		case <-ctx.Done():
			return nil, err
		}
	}
}
