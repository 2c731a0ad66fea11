package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/lamina-snapshotter/lamina/admin"
	"github.com/lamina-snapshotter/lamina/internal/term"
)

func newInspect() *cli.Command {
	var keys []string
	return &cli.Command{
		Name:      "inspect",
		Usage:     "print all that is known of snapshots: record, chain, mounts, device, and who holds them",
		ArgsUsage: "KEY...",
		Description: "A key may be shortened to the beginning of itself, of the name that containerd's clients use (what follows the namespace and " +
			"the number), or of the digest in that, as long as it fits one snapshot.\n\n" + exitCodes,
		Flags:         askFlags(&cli.StringFlag{Name: "name", Usage: "only look at the snapshotter `NAME`"}),
		Arguments:     []cli.Argument{&cli.StringArgs{Name: "key", Max: -1, Destination: &keys}},
		ShellComplete: completeKeys,
		Action: func(ctx context.Context, c *cli.Command) error {
			if len(keys) == 0 {
				return fmt.Errorf("%w: %s needs a key", errUsage, c.FullName())
			}
			return read(ctx, c, func(ctx context.Context, a *asking, source admin.Source) error {
				all := sync.OnceValues(func() ([]admin.Snapshot, error) { return collect(ctx, source) })
				for i, key := range keys {
					found, err := find(ctx, source, all, c.String("name"), key)
					if err != nil {
						return err
					}
					if err := a.inspection(i, found); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
}

// inspection prints the i-th.
func (a *asking) inspection(i int, s admin.Inspection) error {
	if a.json {
		return a.printJSON(s)
	}
	if i > 0 {
		if err := a.printf("\n"); err != nil {
			return err
		}
	}
	t := &term.Table{Style: a.style}
	a.record(t, s.Snapshot)
	if s.Path != "" {
		t.Add("path", term.Quote(s.Path))
	}
	addAll(t, "chain", s.Chain, func(p admin.Snapshot) string {
		return fmt.Sprintf("%s  %s, %s", term.Quote(p.Key), term.Line(p.Kind), sizeText(p))
	})
	addAll(t, "children", s.Children, term.Quote)
	addAll(t, "mounts", s.Mounts, func(m admin.Mount) string {
		options := make([]string, len(m.Options))
		for i, o := range m.Options {
			options[i] = term.Quote(o)
		}
		text := term.Quote(m.Type) + " " + term.Quote(m.Source)
		if len(options) > 0 {
			text += " " + strings.Join(options, ",")
		}
		if m.Target != "" {
			text += " at " + term.Quote(m.Target)
		}
		return text
	})
	addAll(t, "held by", s.Holders, term.Line)
	addAll(t, "unknown", s.Unknown, term.Line)
	return t.Print(a.out)
}

// addAll adds a row for each, the first with what they are.
func addAll[T any](t *term.Table, what string, all []T, text func(T) string) {
	for _, one := range all {
		t.Add(what, text(one))
		what = ""
	}
}

// record adds what the store knows.
func (a *asking) record(t *term.Table, s admin.Snapshot) {
	t.Add("key", a.style.Paint(term.Bold, term.Quote(s.Key)))
	t.Add("snapshotter", term.Quote(s.Name))
	t.Add("kind", a.kind(s.Kind))
	t.Add("id", fmt.Sprint(s.ID))
	t.Add("created", a.moment(s.Created))
	if !s.Updated.Equal(s.Created) {
		t.Add("updated", a.moment(s.Updated))
	}
	if u := s.Usage; u != nil {
		t.Add("size", fmt.Sprintf("%s in %d inodes", term.Bytes(u.Bytes), u.Inodes))
	}
	t.Add("content", contentText(s.Content))
	addAll(t, "labels", slices.Sorted(maps.Keys(s.Labels)), func(key string) string {
		return term.Quote(key) + "=" + term.Quote(s.Labels[key])
	})
}

func (a *asking) moment(t time.Time) string {
	return t.UTC().Format(time.RFC3339) + ", " + term.Age(a.now(), t) + " ago"
}

func contentText(c admin.Content) string {
	if c.Backend == "" {
		return "its parent's"
	}
	text := term.Line(c.Backend)
	if c.Device != 0 {
		text += fmt.Sprintf(", device %d", c.Device)
	}
	if c.Project != 0 {
		text += fmt.Sprintf(", project %d", c.Project)
	}
	if c.Limit != 0 {
		text += ", at most " + term.Bytes(c.Limit)
	}
	return text
}
