package main

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v3"

	"github.com/lamina-snapshotter/lamina/admin"
	"github.com/lamina-snapshotter/lamina/internal/term"
)

func newCleanup() *cli.Command {
	return &cli.Command{
		Name:  "cleanup",
		Usage: "delete what has been removed, and wait for it",
		Description: "What containerd removes is deleted in the background anyway; this is done when it is. What a process still uses waits for that, " +
			"and is not waited for here. Ctrl-C ends the waiting.\n\n" + exitCodes,
		Flags: askFlags(),
		Action: func(ctx context.Context, c *cli.Command) error {
			return command(ctx, c, func(ctx context.Context, a *asking, client *admin.Client) error {
				before, err := client.Status(ctx)
				if err != nil {
					return err
				}
				if err := a.cleanup(ctx, client, trashOf(before)); err != nil {
					return err
				}
				after, err := client.Status(ctx)
				if err != nil {
					return err
				}
				done := cleaned{Before: trashOf(before), After: trashOf(after)}
				if a.json {
					return a.printJSON(done)
				}
				return a.printf("%s\n", done.text(after))
			})
		},
	}
}

// A cleaned is how much there was to delete.
type cleaned struct {
	Before int `json:"before"`
	After  int `json:"after"`
}

// text says it for people. What is left is mostly so because somebody uses it.
func (c cleaned) text(after admin.Status) string {
	if c.Before == 0 && c.After == 0 {
		return "nothing was to be deleted"
	}
	waiting := 0
	for _, b := range after.Backends {
		waiting += b.Waiting
	}
	text := fmt.Sprintf("%d were to be deleted, %d are left", c.Before, c.After)
	if waiting > 0 {
		text += fmt.Sprintf(", %d of them still in use", waiting)
	}
	return text
}

func trashOf(s admin.Status) (n int) {
	for _, b := range s.Backends {
		n += b.Trash
	}
	return n
}

// cleanup waits for the daemon, and shows how far it is.
func (a *asking) cleanup(ctx context.Context, client *admin.Client, total int) error {
	return a.during(ctx, "deleting", func(p *term.Progress) {
		if now, err := client.Status(ctx); err == nil { // the other call has the error that counts
			p.Show(max(0, total-trashOf(now)), total)
		}
	}, func() error { return client.Cleanup(ctx) })
}
