// Command lamina is the daemon that serves containerd's snapshots API, and the operator's commands. "lamina --help" lists
// them; docs/operating.md describes them.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal asks for an orderly stop. From then on signals have their default effect again, so that the
	// second one ends the process at once, which harms nothing: the root is made to be found after a kill -9.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args, os.Stdout, os.Stderr))
}
