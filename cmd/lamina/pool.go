package main

import (
	"context"

	"github.com/urfave/cli/v3"
)

func newPool() *cli.Command {
	return &cli.Command{
		Name:     "pool",
		Usage:    "work on the pool of the thin backend",
		Commands: []*cli.Command{newPoolStatus(), newPoolGrow(), newPoolTrim(), newPoolAdd(), newPoolCreate()},
		Action: func(_ context.Context, c *cli.Command) error {
			return cli.ShowSubcommandHelp(c)
		},
	}
}
