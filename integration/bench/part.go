package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"

	"github.com/containerd/containerd/v2/pkg/namespaces"
)

// A part is what can be asked for alone. It has dir to itself, and starts and ends what it measures.
type part struct {
	name string
	run  func(ctx context.Context, s settings, dir string) (section, error)
}

// A section is what a part found. Its JSON says all of it, the table what one wants to see at once.
type section interface {
	table(w io.Writer) error
}

// parts are all, in the order in which they are measured.
var parts = []part{
	{"operations", measureOperations},
	{"daemon", measureDaemon},
}

// partsOf returns the parts of these names, or all, and whether there are such.
func partsOf(names []string) (chosen []part, known bool) {
	if len(names) == 0 {
		return parts, true
	}
	for _, name := range names {
		i := slices.IndexFunc(parts, func(p part) bool { return p.name == name })
		if i < 0 {
			return nil, false
		}
		chosen = append(chosen, parts[i])
	}
	return chosen, true
}

// measure runs the parts that were asked for, and reports.
func measure(ctx context.Context, s settings, stdout io.Writer) error {
	ctx = namespaces.WithNamespace(ctx, "bench")
	found := map[string]any{"backend": s.backend, "seed": s.seed, "rounds": s.rounds, "processors": runtime.NumCPU()}
	for _, p := range s.parts {
		section, err := p.measure(ctx, s)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		found[p.name] = section
		if s.output != "json" {
			_, _ = fmt.Fprintf(stdout, "%s: %s\n", s.backend, p.name)
			if err := section.table(stdout); err != nil {
				return err
			}
		}
	}
	if s.output != "json" {
		return nil
	}
	enc := json.NewEncoder(stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(found)
}

func (p part) measure(ctx context.Context, s settings) (_ section, err error) {
	dir, err := os.MkdirTemp(s.dir, "bench")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	return p.run(ctx, s, dir)
}
