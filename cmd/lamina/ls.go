package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/lamina-snapshotter/lamina/admin"
	"github.com/lamina-snapshotter/lamina/internal/term"
)

func newLs() *cli.Command {
	return &cli.Command{
		Name:  "ls",
		Usage: "list the snapshots",
		Description: "Sizes are what a snapshot adds to its parent; a container's is not recorded while it is active, see \"lamina du\". " +
			"Keys that a terminal might not only print are quoted as in Go.\n\n" + exitCodes,
		Flags: askFlags(append(filterFlags(),
			&cli.StringFlag{Name: "sort", Usage: "order by `WHAT`: chain (a parent before its children), key, size, created or updated", Value: "chain"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print only keys"})...),
		Action: func(ctx context.Context, c *cli.Command) error {
			f, err := newFilter(c)
			if err != nil {
				return err
			}
			order, err := orderOf(c.String("sort"))
			if err != nil {
				return err
			}
			return read(ctx, c, func(ctx context.Context, a *asking, source admin.Source) error {
				all, err := collect(ctx, source)
				if err != nil {
					return err
				}
				all = slices.DeleteFunc(all, func(s admin.Snapshot) bool { return !f.matches(s) })
				if order != nil {
					slices.SortStableFunc(all, order)
				}
				return a.list(all, c.Bool("quiet"))
			})
		},
	}
}

// orderOf returns how to compare snapshots: the largest and the latest come last, where one sees them.
func orderOf(what string) (func(a, b admin.Snapshot) int, error) {
	switch what {
	case "chain":
		return nil, nil //nolint:nilnil // as they come
	case "key":
		return func(a, b admin.Snapshot) int {
			return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Key, b.Key))
		}, nil
	case "size":
		return func(a, b admin.Snapshot) int { return cmp.Compare(sizeOf(a), sizeOf(b)) }, nil
	case "created":
		return func(a, b admin.Snapshot) int { return a.Created.Compare(b.Created) }, nil
	case "updated":
		return func(a, b admin.Snapshot) int { return a.Updated.Compare(b.Updated) }, nil
	}
	return nil, fmt.Errorf("%w: %w", errUsage, oneOf("sort", what, "chain", "key", "size", "created", "updated"))
}

// sizeOf returns the size of a snapshot, or 0 if it is not recorded.
func sizeOf(s admin.Snapshot) uint64 {
	if s.Usage == nil {
		return 0
	}
	return s.Usage.Bytes
}

// sizeText is a size for people, as far as it is recorded.
func sizeText(s admin.Snapshot) string {
	if s.Usage == nil {
		return "-"
	}
	return term.Bytes(s.Usage.Bytes)
}

func (a *asking) list(all []admin.Snapshot, quiet bool) error {
	if a.json {
		for _, s := range all {
			if err := a.printJSON(s); err != nil {
				return err
			}
		}
		return nil
	}
	table := term.Table{Style: a.style, Head: []string{"NAME", "KIND", "SIZE", "AGE", "KEY", "PARENT"}, Right: []bool{false, false, true, true}}
	if quiet {
		table.Head = nil
	}
	for _, s := range all {
		if quiet {
			table.Add(term.Quote(s.Key))
			continue
		}
		parent := "-"
		if s.Parent != "" {
			parent = term.Quote(s.Parent)
		}
		table.Add(term.Quote(s.Name), a.kind(s.Kind), sizeText(s), term.Age(a.now(), s.Created), term.Quote(s.Key), parent)
	}
	return table.Print(a.out)
}

// kind is a kind in its colour.
func (a *asking) kind(kind string) string {
	switch kind {
	case "active":
		return a.style.Paint(term.Green, kind)
	case "view":
		return a.style.Paint(term.Cyan, kind)
	default:
		return term.Line(kind)
	}
}
