package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

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

// A hinted is an error that says where to read on.
type hinted struct {
	error

	command string
}

func (h hinted) Error() string { return fmt.Sprintf("%v (see \"%s --help\")", h.error, h.command) }
func (h hinted) Unwrap() error { return h.error }

// seeHelp adds to a wrong command line where to read on, once.
func seeHelp(c *cli.Command, err error) error {
	if !errors.Is(err, errUsage) {
		return err
	}
	if h, ok := errors.AsType[hinted](err); ok { // of the command line that help makes
		err = h.error
	}
	return hinted{err, c.FullName()}
}

// unknown is the error of an argument that a command does not have, with the command below it that may be meant.
func unknown(c *cli.Command, text string) error {
	meant := cli.SuggestCommand(c.Commands, text)
	if similar(text, meant) && slices.ContainsFunc(c.VisibleCommands(), func(sub *cli.Command) bool { return sub.Name == meant }) {
		return fmt.Errorf("%w: %s has no command or argument %q, did you mean %q?", errUsage, c.FullName(), text, meant)
	}
	return fmt.Errorf("%w: %s has no command or argument %q", errUsage, c.FullName(), text)
}

// similar reports whether a word may be a slip of the other: at most one letter in four is not in that, which is at most twice as long.
func similar(text, meant string) bool {
	rest, strange := meant, 0
	for _, letter := range text {
		if !strings.ContainsRune(rest, letter) {
			strange++
		}
		rest = strings.Replace(rest, string(letter), "", 1)
	}
	return 4*strange <= len(text) && len(meant) <= 2*len(text)
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
