package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/lamina-snapshotter/lamina/admin"
)

// A filter says which snapshots are meant. All of it must be true of one.
type filter struct {
	name   string
	kind   string
	key    string // that the key contains
	labels [][2]string
}

func filterFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "name", Usage: "only those of the snapshotter `NAME`"},
		&cli.StringFlag{Name: "kind", Usage: "only those of `KIND`: committed, active or view"},
		&cli.StringFlag{Name: "key", Usage: "only those whose key contains `TEXT`"},
		&cli.StringSliceFlag{Name: "label", Usage: "only those with the label `KEY=VALUE`, or KEY whatever its value; several must all be there"},
	}
}

func newFilter(c *cli.Command) (filter, error) {
	f := filter{name: c.String("name"), kind: c.String("kind"), key: c.String("key")}
	if f.kind != "" {
		if err := oneOf("kind", f.kind, "committed", "active", "view"); err != nil {
			return f, fmt.Errorf("%w: %w", errUsage, err)
		}
	}
	for _, label := range c.StringSlice("label") {
		key, value, given := strings.Cut(label, "=")
		if key == "" {
			return f, fmt.Errorf("%w: --label %q has no key", errUsage, label)
		}
		if !given {
			value = anyValue
		}
		f.labels = append(f.labels, [2]string{key, value})
	}
	return f, nil
}

// anyValue stands for no value in particular. No label has it, as containerd's are UTF-8.
const anyValue = "\xff"

func (f filter) matches(s admin.Snapshot) bool {
	if f.name != "" && s.Name != f.name || f.kind != "" && s.Kind != f.kind || !strings.Contains(s.Key, f.key) {
		return false
	}
	for _, want := range f.labels {
		value, ok := s.Labels[want[0]]
		if !ok || want[1] != anyValue && value != want[1] {
			return false
		}
	}
	return true
}

// empty reports whether f lets everything pass.
func (f filter) empty() bool {
	return f.name == "" && f.kind == "" && f.key == "" && len(f.labels) == 0
}
