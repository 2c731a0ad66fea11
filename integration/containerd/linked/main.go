// Linked is containerd with Lamina linked in: its snapshotter "lamina" is a
// plugin like containerd's own and needs no daemon and no socket. It differs
// from cmd/containerd by one import.
package main

import (
	"context"
	"fmt"
	"os"

	_ "github.com/containerd/containerd/v2/cmd/containerd/builtins" // containerd's own plugins
	"github.com/containerd/containerd/v2/cmd/containerd/command"

	_ "github.com/lamina-snapshotter/lamina" // the snapshotter
)

func main() {
	if err := command.App().Run(context.Background(), os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "containerd:", err)
		os.Exit(1)
	}
}
