package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/urfave/cli/v3"
)

// adopt makes a command and those below it report a wrong command line the same way, with where to read on. The library would print the
// whole help instead, and swallow arguments that no command asked for.
func adopt(c *cli.Command) {
	c.OnUsageError = func(_ context.Context, c *cli.Command, err error, _ bool) error {
		return seeHelp(c, fmt.Errorf("%w: %w", errUsage, err))
	}
	action := c.Action
	c.Action = func(ctx context.Context, c *cli.Command) error {
		if c.Args().Present() {
			return seeHelp(c, unknown(c, c.Args().First()))
		}
		return seeHelp(c, action(ctx, c))
	}
	for _, sub := range c.Commands {
		adopt(sub)
	}
}

func seeHelp(c *cli.Command, err error) error {
	if errors.Is(err, errUsage) {
		return fmt.Errorf("%w (see \"%s --help\")", err, c.FullName())
	}
	return err
}

// unknown is the error of an argument that a command does not have, with the command below it that may be meant.
func unknown(c *cli.Command, text string) error {
	meant := cli.SuggestCommand(c.Commands, text)
	if slices.ContainsFunc(c.VisibleCommands(), func(sub *cli.Command) bool { return sub.Name == meant }) {
		return fmt.Errorf("%w: %s has no command or argument %q, did you mean %q?", errUsage, c.FullName(), text, meant)
	}
	return fmt.Errorf("%w: %s has no command or argument %q", errUsage, c.FullName(), text)
}

// newHelp is for who asks for help as of other tools.
func newHelp() *cli.Command {
	var of []string
	return &cli.Command{
		Name:      "help",
		Usage:     "print the help of a command, as its --help does",
		ArgsUsage: "[COMMAND...]",
		Arguments: []cli.Argument{&cli.StringArgs{Name: "command", Max: -1, Destination: &of}},
		Action: func(ctx context.Context, c *cli.Command) error {
			return newRoot(c.Root().Writer, c.Root().ErrWriter).Run(ctx, slices.Concat([]string{"lamina"}, of, []string{"--help"}))
		},
	}
}
