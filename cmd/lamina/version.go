package main

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/urfave/cli/v3"
)

// version is set by the linker (-X main.version=); nothing writes it afterwards.
var version string

func newVersion() *cli.Command {
	return &cli.Command{
		Name:   "version",
		Usage:  "print the version of lamina and of the Go that built it",
		Action: printVersion,
	}
}

func printVersion(_ context.Context, c *cli.Command) error {
	_, err := fmt.Fprintf(c.Root().Writer, "lamina %s %s %s/%s\n", buildVersion(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}

// buildVersion falls back to what the go command wrote into the binary, which knows the version of "go install" and the
// commit of a checkout.
func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
