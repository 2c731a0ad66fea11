package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/lamina-snapshotter/lamina/admin"
)

var (
	// errNoSnapshot is returned when there is none of a key.
	errNoSnapshot = errors.New("there is no such snapshot")

	// errAmbiguous is returned when a key is that of several.
	errAmbiguous = fmt.Errorf("%w: the key is that of several", errUsage)
)

// resolve returns the snapshot that a key of the command line means: the one that has it, or the only one that it fits.
func resolve(all []admin.Snapshot, name, text string) (admin.Snapshot, error) {
	var exact, fitting []admin.Snapshot
	for _, s := range all {
		switch {
		case name != "" && s.Name != name:
		case s.Key == text:
			exact = append(exact, s)
		case text != "" && fits(s.Key, text):
			fitting = append(fitting, s)
		}
	}
	if len(exact) > 0 {
		fitting = exact
	}
	switch len(fitting) {
	case 0:
		return admin.Snapshot{}, fmt.Errorf("%w: %q", errNoSnapshot, text)
	case 1:
		return fitting[0], nil
	}
	const shown = 5
	var some []string
	for _, s := range fitting[:min(shown, len(fitting))] {
		some = append(some, fmt.Sprintf("%s %q", s.Name, s.Key))
	}
	more := ""
	if len(fitting) > shown {
		more = fmt.Sprintf(" and %d more", len(fitting)-shown)
	}
	return admin.Snapshot{}, fmt.Errorf("%w: %q fits %s%s; --name or more of the key decides", errAmbiguous, text, strings.Join(some, ", "), more)
}

// find returns what is known of the snapshot that a key means. Only a shortened one costs a look at all.
func find(ctx context.Context, source admin.Source, all func() ([]admin.Snapshot, error), name, text string) (admin.Inspection, error) {
	if name != "" {
		found, err := source.Inspect(ctx, name, text)
		if !errdefs.IsNotFound(err) {
			return found, err
		}
	}
	snapshots, err := all()
	if err != nil {
		return admin.Inspection{}, err
	}
	s, err := resolve(snapshots, name, text)
	if err != nil {
		return admin.Inspection{}, err
	}
	found, err := source.Inspect(ctx, s.Name, s.Key)
	if errdefs.IsNotFound(err) {
		return found, fmt.Errorf("%w: %q has just been removed", errNoSnapshot, s.Key)
	}
	return found, err
}
