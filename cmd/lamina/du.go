package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/urfave/cli/v3"

	"github.com/lamina-snapshotter/lamina/admin"
	"github.com/lamina-snapshotter/lamina/internal/term"
)

func newDu() *cli.Command {
	return &cli.Command{
		Name:  "du",
		Usage: "print what the deletion of each snapshot, with all that is made upon it, would give back",
		Description: "OWN is what a snapshot alone has, SHARED what it has in common with others. It may walk the directories of containers and " +
			"read the metadata of the pool, so it can take a while. When a backend fails it prints what it knows without it, and the error; " +
			"with -o json the last line then has the keys error and class.\n\n" + exitCodes,
		Flags: askFlags(append(filterFlags(),
			&cli.StringFlag{Name: "sort", Usage: "order by `WHAT`: freed, own, or chain (a parent before its children)", Value: "freed"},
			&cli.IntFlag{Name: "top", Aliases: []string{"n"}, Usage: "print only the `N` largest"})...),
		Action: func(ctx context.Context, c *cli.Command) error {
			f, err := newFilter(c)
			if err != nil {
				return err
			}
			if err := oneOf("sort", c.String("sort"), "freed", "own", "chain"); err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			if c.Int("top") < 0 {
				return fmt.Errorf("%w: --top %d is less than 0", errUsage, c.Int("top"))
			}
			return read(ctx, c, func(ctx context.Context, a *asking, source admin.Source) error {
				spaces, err := a.spaces(ctx, source)
				if err != nil && !errors.Is(err, admin.ErrPartial) {
					return err
				}
				return errors.Join(a.printSpaces(spaces, err, f, c.String("sort"), c.Int("top")), err)
			})
		},
	}
}

// A spaceLine is a snapshot with what it takes up.
type spaceLine struct {
	admin.Space

	snapshot admin.Snapshot
}

// spaces asks for what snapshots take up, and shows how far that is.
func (a *asking) spaces(ctx context.Context, source admin.Source) (all []spaceLine, err error) {
	snapshots, err := collect(ctx, source)
	if err != nil {
		return nil, err
	}
	known := make(map[place]admin.Snapshot, len(snapshots))
	for _, s := range snapshots {
		known[place{s.Name, s.Key}] = s
	}
	progress := newProgress(ctx, a.err, a.json, "measuring snapshots")
	err = during(progress, (*term.Progress).Elapsed, func() error {
		return source.Space(ctx, progress.Show, func(s admin.Space) error {
			// What came since is passed over, so that labels and parents are there for all.
			if snapshot, ok := known[place{s.Name, s.Key}]; ok {
				all = append(all, spaceLine{s, snapshot})
			}
			return nil
		})
	})
	return all, err
}

// printSpaces prints all that is known, which is not all there is if a backend has failed.
func (a *asking) printSpaces(all []spaceLine, failed error, f filter, order string, top int) error {
	var total uint64
	for _, s := range all {
		if s.snapshot.Parent == "" {
			total += s.Freed
		}
	}
	whole := len(all)
	all = slices.DeleteFunc(all, func(s spaceLine) bool { return !f.matches(s.snapshot) })
	switch order {
	case "freed":
		slices.SortStableFunc(all, func(a, b spaceLine) int { return cmp.Compare(b.Freed, a.Freed) })
	case "own":
		slices.SortStableFunc(all, func(a, b spaceLine) int { return cmp.Compare(b.Own, a.Own) })
	}
	if top > 0 {
		all = all[:min(top, len(all))]
	}
	if a.json {
		for _, s := range all {
			if err := a.printJSON(s.Space); err != nil {
				return err
			}
		}
		if failed != nil {
			return a.printJSON(map[string]string{"error": fmt.Sprint(failed), "class": "partial"})
		}
		return nil
	}
	t := term.Table{Style: a.style, Head: []string{"FREED", "OWN", "SHARED", "KIND", "NAME", "KEY"}, Right: []bool{true, true, true}}
	for _, s := range all {
		t.Add(term.Bytes(s.Freed), term.Bytes(s.Own), term.Bytes(s.Shared), a.kind(s.snapshot.Kind), term.Quote(s.Name), term.Quote(s.Key))
	}
	if err := t.Print(a.out); err != nil || failed != nil {
		return err
	}
	return a.printf("the deletion of all %d snapshots would give back %s\n", whole, term.Bytes(total))
}
