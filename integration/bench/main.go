package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

var errUsage = errors.New("usage")

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	err := errUsage
	if len(args) > 0 && args[0] == serveCommand {
		err = serve(ctx, args[1:])
	} else if s, parsed := parse(args, stderr); parsed {
		err = measure(ctx, s, stdout)
	}
	switch {
	case errors.Is(err, errUsage):
		return exitUsage
	case err != nil:
		_, _ = fmt.Fprintln(stderr, "bench:", err)
		return exitFailed
	}
	return 0
}

// settings say what is measured, and how often.
type settings struct {
	lamina  string // the program
	dir     string // where all snapshotters keep their things, on one file system
	backend string
	output  string
	seed    uint64
	rounds  int
	scale   scale
	parts   []part
	short   bool
	svg     string // a directory for plots, or ""

	progress io.Writer
}

func parse(args []string, stderr io.Writer) (s settings, ok bool) {
	s.progress = stderr
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&s.lamina, "lamina", "bin/lamina", "the `PROGRAM` that is measured")
	flags.StringVar(&s.dir, "dir", "", "a `DIR` for everything that is written, removed at the end (a temporary one)")
	flags.StringVar(&s.backend, "backend", "union", "union or thin")
	flags.StringVar(&s.output, "o", "table", "table or json")
	flags.Uint64Var(&s.seed, "seed", 1, "of the order in which peers take their turns")
	flags.IntVar(&s.rounds, "rounds", 10, "how often everything is measured")
	flags.StringVar(&s.svg, "svg", "", "a `DIR` for plots, which are SVG (none are made)")
	flags.BoolVar(&s.short, "short", false, "a tenth of the snapshots and files: to see that it runs")
	if err := flags.Parse(args); err != nil {
		return s, false
	}
	s.scale = full
	if s.short {
		s.scale = s.scale.tenth()
	}
	var known bool
	s.parts, known = partsOf(flags.Args())
	if !known || s.rounds < 1 || s.backend != union && s.backend != thin || s.output != "table" && s.output != "json" {
		flags.Usage()
		return s, false
	}
	return s, true
}
