package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/urfave/cli/v3"

	"github.com/lamina-snapshotter/lamina/admin"
	"github.com/lamina-snapshotter/lamina/internal/term"
)

func newTree() *cli.Command {
	var key string
	return &cli.Command{
		Name:      "tree",
		Usage:     "draw the chains as trees: each snapshot on its parent",
		ArgsUsage: "[KEY]",
		Description: "OWN is what a snapshot adds to its parent, SHARED what its parents take up, as far as the store has it: a container's " +
			"own size is not recorded while it is active. With a key, which may be shortened as of \"lamina inspect\", only its chain and what is " +
			"made upon it is drawn. With filters what they let pass, and, dim, what that is made upon.\n\n" + exitCodes,
		Flags: askFlags(append(filterFlags(),
			&cli.StringFlag{Name: "svg", Usage: "draw as SVG into `FILE`, which is replaced once the drawing is whole, or to the standard output for -"})...),
		Arguments:     []cli.Argument{&cli.StringArg{Name: "key", Destination: &key}},
		ShellComplete: completeKeys,
		Action: func(ctx context.Context, c *cli.Command) error {
			f, err := newFilter(c)
			if err != nil {
				return err
			}
			if c.String("svg") != "" && c.String("output") == "json" {
				return fmt.Errorf("%w: --svg draws, and -o json prints objects: one of the two", errUsage)
			}
			return read(ctx, c, func(ctx context.Context, a *asking, source admin.Source) error {
				all, err := collect(ctx, source)
				if err != nil {
					return err
				}
				if key != "" {
					s, err := resolve(all, f.name, key)
					if err != nil {
						return err
					}
					all = through(all, s)
				}
				return a.draw(all, f, c.String("svg"))
			})
		},
	}
}

// draw draws what a filter lets pass.
func (a *asking) draw(all []admin.Snapshot, f filter, svg string) error {
	forests := grow(all)
	if !f.empty() {
		for i := range forests {
			forests[i].prune(f.matches)
		}
		forests = slices.DeleteFunc(forests, func(f forest) bool { return f.count == 0 })
	}
	switch {
	case svg == "-":
		_, err := a.out.Write(drawSVG(forests, a.now()))
		return err
	case svg != "":
		return replaceFile(svg, drawSVG(forests, a.now()))
	case a.json:
		for _, f := range forests {
			for _, n := range before(f.roots) {
				if err := a.printJSON(treeLine{n.Snapshot, n.shared, n.depth}); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return a.printForests(forests)
}

// A treeLine is a node as JSON.
type treeLine struct {
	admin.Snapshot

	Shared uint64 `json:"shared"`
	Depth  int    `json:"depth"`
}

// printForests prints a line for each snapshot.
func (a *asking) printForests(forests []forest) error {
	t := &term.Table{
		Style: a.style, Head: []string{"SNAPSHOT", "KIND", "OWN", "SHARED", "AGE", "NAMESPACE", "IMAGE"},
		Right: []bool{false, false, true, true, true},
	}
	for _, f := range forests {
		t.Add(a.style.Paint(term.Bold, term.Quote(f.name)))
		a.branches(t, f.roots)
	}
	return t.Print(a.out)
}

// maxIndent is how far lines are indented. Longer chains, which nobody could read otherwise, go on there with a number.
const maxIndent = 40

// branches adds the nodes with the lines that lead to them. What stands left of a node's own line is the same for all its siblings.
func (a *asking) branches(t *term.Table, roots []*node) {
	type branch struct {
		*node

		left string
		last bool
	}
	var stack []branch
	push := func(nodes []*node, left string) {
		for i, n := range slices.Backward(nodes) {
			stack = append(stack, branch{n, left, i == len(nodes)-1})
		}
	}
	push(roots, "")
	for len(stack) > 0 {
		b := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		own, below := "├─", "│ "
		if b.last {
			own, below = "└─", "  "
		}
		line := b.left + own
		if b.depth >= maxIndent {
			line = fmt.Sprintf("%s+%d ", b.left, b.depth-maxIndent+1)
			below = ""
		}
		a.branch(t, line, b.node)
		push(b.children, b.left+below)
	}
}

func (a *asking) branch(t *term.Table, line string, n *node) {
	namespace, _ := splitKey(n.Key)
	if namespace != "" {
		namespace = term.Quote(namespace)
	}
	name, kind := shortName(n.Key), a.kind(n.Kind)
	if n.aside {
		name, kind = a.style.Paint(term.Dim, name), a.style.Paint(term.Dim, term.Line(n.Kind))
	}
	t.Add(a.style.Paint(term.Dim, line)+name, kind, sizeText(n.Snapshot), n.sharedText(), term.Age(a.now(), n.Created), namespace, imageOf(n.Snapshot))
}
