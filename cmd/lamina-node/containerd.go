package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/api/services/introspection/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const containerdSocket = "/run/containerd/containerd.sock"

// installContainerd tells containerd of the daemon, which runs: without it the CRI plugin would not start. The kubelet waits
// while containerd is restarted, and containers go on.
//
// A containerd that serves no kubelet with the new files gets those that it last did with, or none: a node is worth more than
// its newest configuration. Who is killed before that finds files that nobody has accepted, and does the same.
func (n *node) installContainerd(ctx context.Context) error {
	if err := os.MkdirAll(containerdConf, 0o755); err != nil {
		return err
	}
	if err := n.systemd.restart(ctx, printUnit); err != nil {
		return err
	}
	files := []file{
		{to: containerdFiles[1], from: filepath.Join(n.config, "cri.toml")},
		{to: containerdFiles[2], from: filepath.Join(n.config, "systemd.toml")},
	}
	want, err := digest([]string{containerdFiles[0], files[0].from, files[1].from})
	if err != nil {
		return err
	}
	if is(refusedWith, want) { // or each start of this pod would restart containerd twice
		return fmt.Errorf("containerd served no kubelet with these files: change them, or delete %s to try once more", refusedWith)
	}
	if err := putAll(files); err != nil {
		return err
	}
	if is(containerdWith, want) {
		return n.systemd.start(ctx, containerdUnit)
	}
	n.say("restarting %s", containerdUnit)
	if err := removeAll([]string{containerdWith}); err != nil { // nobody knows until it is written down again
		return err
	}
	if err := errors.Join(n.systemd.restart(ctx, containerdUnit), criServes(ctx)); err != nil {
		return errors.Join(err, put(file{to: refusedWith, text: want}), n.fallBack(ctx))
	}
	for _, f := range files {
		if err := put(file{to: acceptedFile(f.to), from: f.to}); err != nil {
			return err
		}
	}
	return put(file{to: containerdWith, text: want})
}

func acceptedFile(name string) string { return filepath.Join(accepted, filepath.Base(name)) }

// fallBack restarts containerd with the files that it last served the kubelet with.
func (n *node) fallBack(ctx context.Context) error {
	n.say("restarting %s with what it had before", containerdUnit)
	for _, name := range containerdFiles[1:] {
		err := put(file{to: name, from: acceptedFile(name)})
		if errors.Is(err, fs.ErrNotExist) {
			err = removeAll([]string{name})
		}
		if err != nil {
			return err
		}
	}
	return n.systemd.restart(ctx, containerdUnit)
}

// criServes asks containerd whether its CRI plugin runs. It starts without one, and only logs why.
func criServes(ctx context.Context) error {
	conn, err := grpc.NewClient("unix://"+containerdSocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	request := &introspection.PluginsRequest{Filters: []string{"type==io.containerd.grpc.v1,id==cri"}}
	answer, err := introspection.NewIntrospectionClient(conn).Plugins(ctx, request)
	if err := errors.Join(err, conn.Close()); err != nil {
		return fmt.Errorf("containerd, by %s: %w", containerdSocket, err)
	}
	if len(answer.Plugins) == 0 {
		return errors.New("containerd has no CRI plugin")
	}
	if failed := answer.Plugins[0].InitErr; failed != nil {
		return fmt.Errorf("containerd's CRI plugin did not start: %s", failed.Message)
	}
	return nil
}
