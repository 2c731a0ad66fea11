package lamina

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/lamina-snapshotter/lamina/metadata"
	"github.com/lamina-snapshotter/lamina/overlayaufs"
)

// Migrate translates the layers of the union backend from one form to the other, as [overlayaufs.Migrate] does, in a root
// that no process has open; else it is metadata.ErrLocked. The layers of m are set by it.
func Migrate(ctx context.Context, c Config, m overlayaufs.Migration) (out overlayaufs.Outcome, err error) {
	if err := errors.Join(c.Validate(), m.Validate()); err != nil {
		return out, err
	}
	path := c.storePath()
	if _, err := os.Stat(path); err != nil { // none is made
		return out, fmt.Errorf("root: %w", err)
	}
	// A store that is open to be written is this process's alone, so no daemon and no other migration begins meanwhile.
	store, err := metadata.Open(path, metadata.Options{ReadOnly: m.DryRun})
	if err != nil {
		return out, fmt.Errorf("root: %w", err)
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	c.Union.Root = filepath.Join(c.Root, "union")
	if err := checkOwner(ctx, c.Union.Root, store); err != nil {
		return out, err
	}
	if m.Layers, err = layers(store); err != nil {
		return out, err
	}
	return overlayaufs.Migrate(ctx, c.Union, m)
}

// checkOwner refuses a place of another store, or of a later time than this one.
func checkOwner(ctx context.Context, root string, store *metadata.Store) error {
	survey, err := overlayaufs.Look(ctx, root)
	if err != nil {
		return err
	}
	starts, err := store.LastAnswered(metadata.Directory)
	switch {
	case err != nil:
		return err
	case survey.UUID != "" && survey.UUID != store.UUID():
		return fmt.Errorf("%s belongs to the store %s, and this is %s: lamina doctor says what to do", root, survey.UUID, store.UUID())
	case survey.Start > starts:
		return fmt.Errorf("%s has seen start %d of the store, which stands at %d: lamina doctor says what to do", root, survey.Start, starts)
	}
	return nil
}

// layers returns the directories that have a record.
func layers(store *metadata.Store) (all []overlayaufs.Layer, err error) {
	links, err := store.Contents(metadata.Directory)
	for _, link := range links {
		sn, chain, chainErr := store.ChainOf(link.ID)
		if chainErr != nil {
			return nil, chainErr
		}
		layer := overlayaufs.Layer{ID: link.Content(), Project: link.Placement.Project, Name: fmt.Sprintf("%s, %s", sn.Name, sn.Key)}
		for _, below := range chain[1:] {
			if below.Placement.Medium == metadata.Directory {
				layer.Below = append(layer.Below, overlayaufs.Content{ID: below.Content()})
			}
		}
		all = append(all, layer)
	}
	return all, err
}
