// Command guest runs a shell command as root in a User-Mode Linux guest, or in
// one in QEMU with LAMINA_GUEST=qemu, which has device mapper:
//
//	guest [-memory 4G] [-disk 20G] [-timeout 1h] [-udev] [-w DIR] 'COMMAND'
//
// The host's files are there, read-only; /tmp, /var/tmp, /var/lib and /run are
// the guest's own. -w makes a directory of the host writable. The exit code is
// the command's, 125 if there is none, 2 for wrong flags, 130 after Ctrl-C.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/lamina-snapshotter/lamina/integration/guest"
)

const (
	exitUsage       = 2
	exitFailed      = 125
	exitInterrupted = 130
)

func main() {
	guest.Reenter()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("guest", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		_, _ = fmt.Fprintln(stderr, "guest [flags] 'COMMAND' runs COMMAND as root in a guest: User-Mode Linux, or QEMU with LAMINA_GUEST=qemu.")
		flags.PrintDefaults()
	}
	var o guest.Options
	gib := func(name, usage string, value *int64) {
		flags.Func(name, usage, func(s string) error {
			_, err := fmt.Sscanf(s, "%dG", value)
			*value <<= 30
			return err
		})
	}
	gib("memory", "memory of the guest (4G)", &o.Memory)
	gib("disk", "size of its sparse disk (20G)", &o.Disk)
	flags.DurationVar(&o.Timeout, "timeout", 0, "bound of its life (1h)")
	flags.BoolVar(&o.Udev, "udev", false, "start udevd")
	flags.Func("w", "make `DIR` of the host writable; may be repeated", func(dir string) error {
		o.Writable = append(o.Writable, dir)
		return nil
	})
	if err := flags.Parse(args); err != nil || flags.NArg() != 1 {
		if err == nil {
			flags.Usage()
		}
		return exitUsage
	}
	code, err := guest.Run(ctx, guest.Program{
		Path: "/bin/bash", Args: []string{"-c", flags.Arg(0)},
		Stdout: stdout, Stderr: stderr,
	}, o)
	switch {
	case ctx.Err() != nil:
		return exitInterrupted
	case err != nil:
		_, _ = fmt.Fprintln(stderr, "guest:", err)
		return exitFailed
	}
	return code
}
