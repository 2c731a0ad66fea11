// Command lamina-node puts Lamina on a node of Kubernetes, as a service of its systemd, and takes it away. It is what the image of
// deploy/kubernetes runs; docs/kubernetes.md says why the daemon itself runs in no pod.
//
// It needs root's name and no privilege: it writes files that belong to root, and speaks to systemd by its private socket. It may
// be killed at any moment, and goes on from there when it is started again: each file is replaced as a whole, and what was
// restarted for which files is written down after it was.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/urfave/cli/v3"
)

// jobTimeout bounds all that systemd is asked to do: Lamina may take minutes to open a large pool.
const jobTimeout = 10 * time.Minute

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends it at once
	os.Exit(run(ctx, os.Args, os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := &cli.Command{
		Name: "lamina-node", Usage: "put Lamina on a node of Kubernetes",
		Writer: stdout, ErrWriter: stderr,
		ExitErrHandler: func(context.Context, *cli.Command, error) {},
		Commands: []*cli.Command{
			command("install", "install Lamina, start it, and tell containerd of it; then wait to be stopped", true, (*node).install),
			command("remove", "undo that, but for what Lamina keeps and its configuration; then wait to be stopped", true, (*node).remove),
			command("check", "exit with 0 if Lamina and containerd run", false, (*node).check),
		},
	}
	if err := root.Run(ctx, args); err != nil {
		_, _ = fmt.Fprintf(stderr, "lamina-node: %v\n", err)
		return 1
	}
	return 0
}

// command is one that does its work within jobTimeout. The kubelet would start one again that ends, so it may wait afterwards.
func command(name, usage string, waits bool, do func(*node, context.Context) error) *cli.Command {
	var n node
	return &cli.Command{
		Name: name, Usage: usage,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "image", Value: "/", Usage: "where lamina and lamina.service lie", Destination: &n.image},
			&cli.StringFlag{Name: "config", Value: "/config", Usage: "where config.toml, cri.toml and systemd.toml lie", Destination: &n.config},
		},
		Action: func(ctx context.Context, c *cli.Command) error {
			n.out = c.Root().Writer
			err := n.within(ctx, do)
			if err == nil && waits {
				n.say("done")
				<-ctx.Done()
			}
			return err
		},
	}
}
