package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

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
	if s.disk, err = diskOf(dir); err != nil {
		return err
	}
	on := dir
	if fs := s.diskToMake(); fs != "" {
		mnt, unmount, noQuotas, diskErr := makeDisk(ctx, dir, fs)
		if diskErr != nil {
			return errors.Join(context.Cause(ctx), diskErr)
		}
		defer func() { err = errors.Join(err, unmount()) }()
		if noQuotas != nil {
			_, _ = fmt.Fprintln(s.progress, "without project quotas:", noQuotas)
		}
		on = mnt
		if s.disk, err = diskOf(on); err != nil {
			return err
		}
		s.disk.Made = true
	}
	// What is left mounted for a moment is found by clearDir.
	if err := mount.SetTempMountLocation(filepath.Join(on, "mnt")); err != nil {
		return err
	}
	if err = s.report(ctx, on, stdout); err != nil || ctx.Err() != nil {
		return errors.Join(context.Cause(ctx), err)
	}
	return nil
}

// diskToMake returns the file system that is to be made to measure on, or "". Where nothing was said an ext4 without a journal is
// not measured on, as hardly anybody has one.
func (s settings) diskToMake() string {
	switch {
	case s.fs == fsHere:
		return ""
	case s.fs != "":
		return s.fs
	case s.disk.Journal:
		return ""
	default:
		return "ext4"
	}
}

// report runs each part in a directory of its own in dir. After one that fails the others are run all the same, unless ctx has ended,
// and what was found is reported.
func (s settings) report(ctx context.Context, dir string, stdout io.Writer) error {
	found := map[string]any{"backend": s.backend, "seed": s.seed, "rounds": s.rounds, "processors": runtime.NumCPU(), "disk": s.disk}
	w := s.tables(stdout)
	_, _ = fmt.Fprintf(w, "%s, on %v; %d processors, %d rounds, seed %d\n", s.backend, s.disk, runtime.NumCPU(), s.rounds, s.seed)
	goals, seconds := []target{}, map[string]float64{}
	var errs []error
	for _, p := range s.parts {
		_, _ = fmt.Fprintf(s.progress, "%s\n", p.name)
		began := time.Now()
		section, err := p.measure(ctx, s, dir)
		seconds[p.name] = math.Round(10*time.Since(began).Seconds()) / 10
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", p.name, err))
			if ctx.Err() != nil {
				break
			}
			continue
		}
		found[p.name] = section
		if a, ok := section.(aimed); ok {
			goals = append(goals, a.targets(s)...)
		}
		_, _ = fmt.Fprintf(w, "\n%s: %s (%.0f s)\n\n", s.backend, p.name, seconds[p.name])
		errs = append(errs, section.table(w))
	}
	_, _ = fmt.Fprintf(w, "\n%s: targets\n\n", s.backend)
	errs = append(errs, printTargets(w, goals))
	err := errors.Join(errs...)
	if s.output != "json" {
		return err
	}
	found["targets"], found["seconds"] = goals, seconds
	if err != nil {
		found["error"] = fmt.Sprint(err)
	}
	enc := json.NewEncoder(stdout)
	enc.SetIndent("", "  ")
	return errors.Join(err, enc.Encode(found))
}

// tables is where they are written to.
func (s settings) tables(stdout io.Writer) io.Writer {
	switch s.output {
	case "json":
		return io.Discard
	case "markdown":
		return markdown{stdout}
	default:
		return stdout
	}
}

func (p part) measure(ctx context.Context, s settings, parent string) (_ section, err error) {
	dir, err := os.MkdirTemp(parent, p.name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, clearDir(dir)) }()
	return p.run(ctx, s, dir)
}
