package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// A node is a containerd.
type node struct {
	dir, tools string
	namespace  string // no other containerd's: runc has one directory for all
	process    *process
	conn       *grpc.ClientConn
	log        string
}

// unpackPlugin is what unpacks the images that are pulled.
const unpackPlugin = `[plugins."io.containerd.transfer.v1.local"]` + "\n"

// startNode starts a containerd that can unpack for each of these snapshotters, that many layers of an image at once. config is
// what it has to be told of them.
func startNode(ctx context.Context, dir, tools, config string, snapshotters []string, atOnce int) (_ *node, err error) {
	n := &node{dir: dir, tools: tools, namespace: fmt.Sprint("bench-", os.Getpid()), log: filepath.Join(dir, "containerd.log")}
	file := filepath.Join(dir, "containerd.toml")
	if err := os.WriteFile(file, []byte(n.config(config, snapshotters, atOnce)), 0o600); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(n.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	cmd := exec.CommandContext(context.WithoutCancel(ctx), filepath.Join(tools, "containerd"), "--config", file)
	cmd.Env, cmd.Stderr = n.env(), log
	if n.process, err = start(ctx, "containerd", cmd); err != nil {
		return nil, err
	}
	err = n.process.await(ctx, n.socket())
	if err == nil {
		n.conn, err = dial(n.socket())
	}
	if err != nil {
		return nil, errors.Join(err, n.process.stop(), n.tail())
	}
	return n, nil
}

func (n *node) socket() string { return filepath.Join(n.dir, "containerd.sock") }

// env is that of containerd, which finds its shim by PATH, and of ctr.
func (n *node) env() []string {
	return []string{"PATH=" + n.tools + ":" + os.Getenv("PATH"), "CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS=true"}
}

// config keeps to the node's directory, and loads nothing that is not used.
func (n *node) config(more string, snapshotters []string, atOnce int) string {
	var b strings.Builder
	say := func(format string, args ...any) { _, _ = fmt.Fprintf(&b, format+"\n", args...) }
	say("version = 3\nroot = %q\nstate = %q\ndisabled_plugins = [", filepath.Join(n.dir, "root"), filepath.Join(n.dir, "state"))
	for _, id := range []string{
		"cri.v1.images", "cri.v1.runtime", "grpc.v1.cri", "podsandbox.controller.v1.podsandbox", "nri.v1.nri",
		"internal.v1.opt", "snapshotter.v1.blockfile", "snapshotter.v1.btrfs", "snapshotter.v1.erofs", "snapshotter.v1.zfs",
	} {
		say("  %q,", "io.containerd."+id)
	}
	say("]\n[grpc]\n  address = %q\n[debug]\n  level = \"debug\"\n  format = \"json\"", n.socket())
	say("%s  max_concurrent_unpacks = %d", unpackPlugin, atOnce)
	for _, s := range snapshotters {
		say("[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n  platform = \"linux\"\n  snapshotter = %q\n  differ = \"walking\"", s)
	}
	say("%s", more)
	return b.String()
}

func (n *node) ctr(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(n.tools, "ctr"), append([]string{"--address", n.socket(), "--namespace", n.namespace}, args...)...)
	cmd.Env = n.env()
	return cmd
}

// pull pulls an image, unpacks it, and returns how long containerd says that the unpacking took, and whether it was side by
// side. What the content store has it does not fetch again.
func (n *node) pull(ctx context.Context, image, snapshotter string) (took time.Duration, parallel bool, err error) {
	before, err := os.Stat(n.log)
	if err != nil {
		return 0, false, err
	}
	if out, err := n.ctr(ctx, "images", "pull", "--snapshotter", snapshotter, image).CombinedOutput(); err != nil {
		return 0, false, fmt.Errorf("ctr images pull: %w: %s", err, bytes.TrimSpace(out))
	}
	log, err := os.Open(n.log)
	if err != nil {
		return 0, false, err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	if _, err := log.Seek(before.Size(), io.SeekStart); err != nil {
		return 0, false, err
	}
	for lines := bufio.NewScanner(log); lines.Scan(); {
		var line struct {
			Msg      string        `json:"msg"`
			Duration time.Duration `json:"duration"`
			Parallel bool          `json:"parallel"`
		}
		if bytes.Contains(lines.Bytes(), []byte(`"image unpacked"`)) && json.Unmarshal(lines.Bytes(), &line) == nil {
			return line.Duration, line.Parallel, nil
		}
	}
	return 0, false, errors.New("containerd's log does not say how long an unpack took")
}

// run runs a container, and returns how long it took until it said something.
func (n *node) run(ctx context.Context, image, snapshotter, id string) (took time.Duration, err error) {
	cmd := n.ctr(ctx, "run", "--rm", "--snapshotter", snapshotter, image, id, "/bin/echo", "hello")
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	line, readErr := bufio.NewReader(out).ReadString('\n')
	took = time.Since(began)
	if err := cmd.Wait(); err != nil {
		return 0, fmt.Errorf("ctr run: %w: %s", err, bytes.TrimSpace(said.Bytes()))
	}
	if line != "hello\n" {
		return 0, fmt.Errorf("a container said %q: %w", line, readErr)
	}
	return took, nil
}

// forget removes all snapshots, and has containerd collect them before it returns. The image and its blobs stay.
func (n *node) forget(ctx context.Context, snapshotter string) error {
	sn := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(n.conn), snapshotter)
	ctx = namespaces.WithNamespace(ctx, n.namespace)
	parents := map[string]string{}
	err := sn.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		parents[info.Name] = info.Parent
		return nil
	})
	for err == nil && len(parents) > 0 {
		removed := len(parents)
		for key := range parents {
			if !slices.Contains(valuesOf(parents), key) {
				if removeErr := sn.Remove(ctx, key); !errdefs.IsNotFound(removeErr) { // a collection was sooner
					err = errors.Join(err, removeErr)
				}
				delete(parents, key)
			}
		}
		if len(parents) == removed {
			return errors.New("snapshots that are each other's parents")
		}
	}
	if err != nil {
		return err
	}
	return n.collect(ctx)
}

func valuesOf(m map[string]string) (values []string) {
	for _, v := range m {
		values = append(values, v)
	}
	return values
}

// collect collects garbage: containerd does that when a lease is deleted, if it is asked to.
func (n *node) collect(ctx context.Context) error {
	client := leasesapi.NewLeasesClient(n.conn)
	ctx = metadata.AppendToOutgoingContext(ctx, namespaces.GRPCHeader, n.namespace)
	if _, err := client.Create(ctx, &leasesapi.CreateRequest{ID: "collect"}); err != nil {
		return err
	}
	_, err := client.Delete(ctx, &leasesapi.DeleteRequest{ID: "collect", Sync: true})
	return err
}

// stop removes what containers an interruption has left, and ends containerd.
func (n *node) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	left, _ := n.ctr(ctx, "containers", "ls", "--quiet").Output() // none if it does not answer
	for id := range strings.FieldsSeq(string(left)) {
		for _, args := range [][]string{
			{"tasks", "kill", "--signal", "KILL", id}, {"tasks", "delete", "--force", id}, {"containers", "delete", id},
		} {
			_ = n.ctr(ctx, args...).Run() // one of them is not needed
		}
	}
	err := errors.Join(n.conn.Close(), n.process.stop())
	n.removeState()
	return err
}

// removeState removes what runc and containerd keep of a namespace outside of their roots.
func (n *node) removeState() {
	_ = os.RemoveAll(filepath.Join("/run/containerd/runc", n.namespace))
	for _, pattern := range []string{"/sys/fs/cgroup/*/%s/*", "/sys/fs/cgroup/%s/*", "/sys/fs/cgroup/*/%s", "/sys/fs/cgroup/%s"} {
		found, _ := filepath.Glob(fmt.Sprintf(pattern, n.namespace))
		for _, name := range found {
			_ = os.Remove(name) // files in a cgroup directory are no hindrance
		}
	}
}

// tail returns the end of containerd's log, as an error.
func (n *node) tail() error {
	log, err := os.ReadFile(n.log)
	if err != nil {
		return err
	}
	return fmt.Errorf("the end of containerd's log: %s", log[max(0, len(log)-2000):])
}
