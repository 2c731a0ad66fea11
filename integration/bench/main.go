package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C kills
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// fsHere is what -fs is for the file system of the directory, whatever it is.
const fsHere = "here"

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
	scale   size
	parts   []part
	short   bool
	svg     string // a directory for plots, or ""
	tools   string // the directory of containerd's programs
	busybox string // a static one, for the image that is unpacked
	fs      string // of what is made to measure on, fsHere, or "" for what suits
	timeout time.Duration
	disk    disk // what is measured on
	// views are how many each peer has from the beginning, of one layer.
	views int
	// unproxied leaves containerd's behind its service out.
	unproxied bool
	// requests is a test program of dmthin/internal/dm, or "".
	requests string

	progress io.Writer
}

func parse(args []string, stderr io.Writer) (s settings, ok bool) {
	s.progress = &clocked{w: stderr, began: time.Now()}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&s.lamina, "lamina", "bin/lamina", "the `PROGRAM` that is measured")
	flags.StringVar(&s.dir, "dir", "", "a `DIR` for everything that is written, removed at the end (a temporary one)")
	flags.StringVar(&s.backend, "backend", "union", "union or thin")
	flags.StringVar(&s.output, "o", "table", "table, markdown or json")
	flags.Uint64Var(&s.seed, "seed", 1, "of the order in which peers take their turns")
	flags.IntVar(&s.rounds, "rounds", 0, "how often everything is measured (10, and 3 of thin)")
	flags.StringVar(&s.tools, "tools", "bin/tools", "a `DIR` with containerd and its programs, for images")
	flags.StringVar(&s.busybox, "busybox", ".cache/busybox", "a static busybox, `PROGRAM` of the image that is unpacked")
	flags.StringVar(&s.fs, "fs", "",
		"make a file system, ext4 or xfs, with project quotas if this kernel has them, in a sparse file, and measure on it; or `here`, on the\n"+
			"directory's (here, but ext4 where that is an ext4 without a journal)")
	flags.DurationVar(&s.timeout, "timeout", 20*time.Minute, "give up after this time")
	flags.StringVar(&s.svg, "svg", "", "a `DIR` for plots, which are SVG (none are made)")
	flags.StringVar(&s.requests, "requests", "", "a `PROGRAM`, go test -c of dmthin/internal/dm, whose benchmark is thin's limit in the part prepare")
	flags.BoolVar(&s.short, "short", false, "one round, of little of everything: to see that it runs")
	if err := flags.Parse(args); err != nil {
		return s, false
	}
	s.scale = sizeOf(s.backend)
	if s.short {
		s.scale = s.scale.short()
	}
	err := s.complete(flags.Args())
	if err != nil {
		_, _ = fmt.Fprintln(stderr, "bench:", err)
		flags.Usage()
	}
	return s, err == nil
}

// complete fills in what has no fixed default, and says what cannot be.
func (s *settings) complete(parts []string) (err error) {
	for flag, allowed := range map[string]struct {
		value string
		of    []string
	}{
		"-backend": {s.backend, []string{union, thin}},
		"-o":       {s.output, []string{"table", "markdown", "json"}},
		"-fs":      {s.fs, []string{"", fsHere, "ext4", "xfs"}},
	} {
		if !slices.Contains(allowed.of, allowed.value) {
			return fmt.Errorf("%s is %q, not one of %q", flag, allowed.value, allowed.of)
		}
	}
	switch {
	case s.rounds < 0:
		return fmt.Errorf("-rounds is %d", s.rounds)
	case s.rounds > 0:
	case s.short:
		s.rounds = 1
	case s.backend == thin:
		s.rounds = 3
	default:
		s.rounds = 10
	}
	for _, path := range []*string{&s.lamina, &s.tools, &s.busybox, &s.dir} {
		if *path == "" {
			continue // -dir
		}
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
	}
	s.parts, err = partsOf(parts)
	return err
}

// check says what is missing, before anything is begun.
func (s settings) check() error {
	if os.Geteuid() != 0 {
		return errors.New("it must run as root: it mounts file systems and starts snapshotters")
	}
	if _, err := os.Stat(s.lamina); err != nil {
		return fmt.Errorf("no program to measure, `make build` makes it: %w", err)
	}
	if s.backend == thin {
		if _, err := os.Stat("/dev/mapper/control"); err != nil {
			return errors.New("this kernel has no device mapper, run it in a guest: bin/guest -udev 'bin/bench -backend thin'")
		}
		if _, err := os.Stat("/run/udev/control"); err != nil {
			return errors.New("no udevd runs, which devmapper waits for: bin/guest -udev starts one")
		}
	}
	if s.fs != "" && s.fs != fsHere {
		if _, err := os.Stat("/dev/loop-control"); err != nil {
			return fmt.Errorf("no loop devices, for a file system of its own: %w", err)
		}
	}
	if s.backend == thin {
		for _, program := range []string{"dmsetup", "losetup", "blockdev", "truncate", "udevadm"} {
			if _, err := exec.LookPath(program); err != nil {
				return fmt.Errorf("`integration/setup packages udev` installs what is missing: %w", err)
			}
		}
	}
	if s.has(partImages) {
		return s.checkImages()
	}
	return nil
}

// has reports whether a part was asked for.
func (s settings) has(name string) bool {
	return slices.ContainsFunc(s.parts, func(p part) bool { return p.name == name })
}
