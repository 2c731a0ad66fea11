package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/lamina-snapshotter/lamina/internal/term"
	"github.com/lamina-snapshotter/lamina/metadata"
)

// The exit codes. They stand in the help and in docs/operating.md, and unit files test for them.
const (
	exitOK          = 0
	exitFailure     = 1
	exitUsage       = 2
	exitConfig      = 3
	exitInUse       = 4
	exitCut         = 5
	exitNoDaemon    = 6
	exitNotFound    = 7
	exitInterrupted = 130 // as a shell's of a program that SIGINT ended
)

const about = `Lamina keeps the layers of images and the writable layers of containers: as directories that overlayfs joins (union), or as volumes of a
device-mapper thin pool (thin). One daemon serves containerd on a unix socket.

`

const exitCodes = `Exit codes:
   0  done; of serve: stopped by a signal, every call finished
   1  failed
   2  the command line is wrong
   3  the configuration is wrong
   4  another process has the root or the address in use
   5  of serve: stopped by a signal, but calls had to be cut off
   6  no daemon answers, and this needs one
   7  there is no such snapshot
 130  interrupted`

var (
	// errUsage is returned when the command line is wrong.
	errUsage = errors.New("wrong usage")

	// errConfig is returned when the configuration is wrong.
	errConfig = errors.New("wrong configuration")

	// errInUse is returned when another daemon serves the address.
	errInUse = errors.New("in use")

	errInterrupted = errors.New("interrupted")

	// errCut is returned when the time for finishing calls ran out at the stop.
	errCut = errors.New("calls were cut off")
)

// run executes one command line and returns the exit code. The daemon stops in order when ctx ends.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	err := newRoot(stdout, stderr).Run(ctx, args)
	if err == nil {
		return exitOK
	}
	code, err := ended(ctx, err)
	// There may be keys in it, or what somebody typed: nothing in it begins a line.
	text := strings.ReplaceAll(strings.TrimRight(fmt.Sprint(err), "\n"), "\n", "\n  ")
	if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
		text += " (you are not root)"
	}
	_, _ = fmt.Fprintf(stderr, "lamina: %s\n", term.Clean(text))
	return code
}

// ended returns the exit code of an error and what is told of it: of what an interruption ended, what had failed until then.
func ended(ctx context.Context, err error) (code int, told error) {
	code = exitCode(err)
	if code != exitFailure && !errors.Is(err, errNotLooked) || ctx.Err() == nil || !errors.Is(err, ctx.Err()) {
		return code, err
	}
	if isOnly(err, ctx.Err(), errNotLooked) {
		return exitInterrupted, errInterrupted
	}
	return exitInterrupted, fmt.Errorf("%w: %w", errInterrupted, err)
}

// isOnly reports whether all that an error wraps is of these.
func isOnly(err error, these ...error) bool {
	var inside []error
	switch err := err.(type) { //nolint:errorlint // it takes the tree apart itself
	case interface{ Unwrap() error }:
		if one := err.Unwrap(); one != nil {
			inside = []error{one}
		}
	case interface{ Unwrap() []error }:
		inside = err.Unwrap()
	}
	if len(inside) == 0 {
		return slices.ContainsFunc(these, func(one error) bool { return errors.Is(err, one) })
	}
	return !slices.ContainsFunc(inside, func(one error) bool { return !isOnly(one, these...) })
}

func exitCode(err error) int {
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errFindings):
		return exitFindings
	case errors.Is(err, errNotLooked), errors.Is(err, errRefused):
		return exitNotLooked
	case errors.Is(err, errUsage), isLibrarys(err):
		return exitUsage
	case errors.Is(err, errConfig):
		return exitConfig
	case errors.Is(err, errInUse), errors.Is(err, metadata.ErrLocked):
		return exitInUse
	case errors.Is(err, errCut):
		return exitCut
	case errors.Is(err, errNeedsDaemon):
		return exitNoDaemon
	case errors.Is(err, errNoSnapshot):
		return exitNotFound
	default:
		return exitFailure
	}
}

// isLibrarys reports whether an error is of the library that reads command lines: help of a command that is not there.
func isLibrarys(err error) bool {
	coder, ok := errors.AsType[cli.ExitCoder](err)
	_, process := coder.(interface{ Pid() int }) // an exec.ExitError: another program's code
	return ok && !process
}

func newRoot(stdout, stderr io.Writer) *cli.Command {
	root := &cli.Command{
		Name:        "lamina",
		Usage:       "a snapshotter for containerd",
		Description: about + exitCodes,
		Commands: []*cli.Command{
			newServe(), newStatus(), newTree(), newLs(), newInspect(), newDu(), newTop(), newPool(), newCleanup(), newDoctor(),
			newConfig(), newMigrate(), newFeatures(), newVersion(), newHelp(), newGenerate(),
		},
		Flags:                 []cli.Flag{&cli.BoolFlag{Name: "version", Aliases: []string{"v"}, Usage: "print the version", Local: true}},
		Before:                versionAlone,
		HideHelpCommand:       true,
		EnableShellCompletion: true,
		ConfigureShellCompletionCommand: func(c *cli.Command) {
			c.Hidden = false
			c.Usage = "print a script that completes command lines, for bash, zsh or fish"
			adopt(c)
		},
		// The library would end the process at an error of its own, with a code that means something else here.
		ExitErrHandler: func(context.Context, *cli.Command, error) {},

		Writer:    stdout,
		ErrWriter: stderr,
		Action:    showHelp,
	}
	adopt(root)
	return root
}

// versionAlone refuses a command beside --version.
func versionAlone(ctx context.Context, c *cli.Command) (context.Context, error) {
	if c.Bool("version") && c.Args().Present() {
		return ctx, seeHelp(c, fmt.Errorf("%w: --version goes without a command, not with %q", errUsage, c.Args().First()))
	}
	return ctx, nil
}

func showHelp(ctx context.Context, c *cli.Command) error {
	if c.Bool("version") {
		return printVersion(ctx, c)
	}
	return cli.ShowRootCommandHelp(c)
}
