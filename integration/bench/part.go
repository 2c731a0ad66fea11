package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/log"
)

// A part is what can be asked for alone. It has dir to itself, and starts and ends what it measures.
type part struct {
	name string
	run  func(ctx context.Context, s settings, dir string) (section, error)
}

// A section is what a part found. Its JSON says all of it, the table what one wants to see at once. It may be aimed.
type section interface {
	table(w io.Writer) error
}

// The names of parts.
const (
	partImages = "images"
)

// parts returns all, in the order in which they are measured.
func parts() []part {
	return []part{
		{"operations", measureOperations},
		{"quotas", measureQuotas},
		{"restart", measureRestart},
		{partImages, measureImages},
		{"daemon", measureDaemon},
		{"scale", measureScale},
		{"prepare", measurePrepare},
	}
}

// partsOf returns the parts of these names, or all.
func partsOf(names []string) (chosen []part, err error) {
	all := parts()
	if len(names) == 0 {
		return all, nil
	}
	for _, name := range names {
		i := slices.IndexFunc(all, func(p part) bool { return p.name == name })
		if i < 0 {
			known := make([]string, len(all))
			for i, p := range all {
				known[i] = p.name
			}
			return nil, fmt.Errorf("there is no part %q; there are %q", name, known)
		}
		chosen = append(chosen, all[i])
	}
	return chosen, nil
}

// measure runs the parts that were asked for, and reports.
func measure(ctx context.Context, s settings, stdout io.Writer) (err error) {
	if err := s.check(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(namespaces.WithNamespace(ctx, "bench"), s.timeout, fmt.Errorf("not done after %v", s.timeout))
	defer cancel()
	log.L.Logger.SetOutput(io.Discard) // of containerd's snapshotters
	dir, err := os.MkdirTemp(s.dir, "bench")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, clearDir(dir)) }()
	on := dir
	if s.fs != "" {
		mnt, unmount, err := makeDisk(ctx, dir, s.fs)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, unmount()) }()
		on = mnt
	}
	if s.disk, err = diskOf(on); err != nil {
		return err
	}
	// What is left mounted for a moment is found by clearDir.
	if err := mount.SetTempMountLocation(filepath.Join(on, "mnt")); err != nil {
		return err
	}
	err = s.report(ctx, on, stdout)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// report runs each part in a directory of its own in dir.
func (s settings) report(ctx context.Context, dir string, stdout io.Writer) error {
	found := map[string]any{"backend": s.backend, "seed": s.seed, "rounds": s.rounds, "processors": runtime.NumCPU(), "disk": s.disk}
	if s.output != "json" {
		_, _ = fmt.Fprintf(stdout, "%s, on %v; %d processors, %d rounds, seed %d\n", s.backend, s.disk, runtime.NumCPU(), s.rounds, s.seed)
	}
	goals := []target{}
	for _, p := range s.parts {
		section, err := p.measure(ctx, s, dir)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		found[p.name] = section
		if a, ok := section.(aimed); ok {
			goals = append(goals, a.targets(s)...)
		}
		if s.output != "json" {
			_, _ = fmt.Fprintf(stdout, "\n%s: %s\n", s.backend, p.name)
			if err := section.table(stdout); err != nil {
				return err
			}
		}
	}
	if s.output != "json" {
		_, _ = fmt.Fprintf(stdout, "\n%s: targets\n", s.backend)
		return printTargets(stdout, goals)
	}
	found["targets"] = goals
	enc := json.NewEncoder(stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(found)
}

func (p part) measure(ctx context.Context, s settings, parent string) (_ section, err error) {
	dir, err := os.MkdirTemp(parent, p.name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, clearDir(dir)) }()
	return p.run(ctx, s, dir)
}
