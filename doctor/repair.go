package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/lamina-snapshotter/lamina/metadata"
)

// A Repair cures findings of a root that no daemon has. Each cure is announced and asked about before it begins.
type Repair struct {
	Findings []Finding

	DryRun bool // only announce
	// RemoveLost lets snapshots whose content is lost be removed, with those upon them that are lost with it.
	RemoveLost bool

	Say func(text string)                           // announces
	Ask func(question string) (yes bool, err error) // asks

	// Unlock gives up what kept a daemon from starting since the examination. It is called before the cures that take the
	// root themselves.
	Unlock func() error
	// Open opens the store to be written.
	Open func() (*metadata.Store, error) // read-only for DryRun
	// Pool repairs the metadata of the pool, which does not run. Without it that is left to the user.
	Pool func(ctx context.Context) error
	// Start starts and stops a daemon's work on the root, and meanwhile mounts these snapshots, by name and key.
	Start func(ctx context.Context, mount [][2]string) error

	removed bool // snapshots, whose contents are in the trash now
}

// Run carries the repair out. It goes on after a cure that failed or was declined; the error has them all. A kill -9 in
// between leaves findings of which some are cured: run it again.
func (r *Repair) Run(ctx context.Context) error {
	var errs []error
	for _, f := range r.Findings {
		if f.Cure == ByHand || f.Cure == ByRepair && f.cure == nil && r.Pool == nil {
			r.Say(fmt.Sprintf("%s: %s: left to you: %s", f.Code, f.Object, f.Advice))
		}
		if f.Cure == ByRepair && f.cure != nil {
			errs = append(errs, r.Do(ctx, fmt.Sprintf("%s: take %s away: %s", f.Code, f.Object, f.What), f.cure))
		}
	}
	if slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Cure == ByRepair && f.cure == nil }) && r.Pool != nil {
		errs = append(errs, r.Do(ctx, "repair the metadata of the pool", r.Pool))
	}
	if r.Unlock != nil {
		errs = append(errs, r.Unlock())
	}
	errs = append(errs, r.removeLost(ctx), r.start(ctx))
	return errors.Join(errs...)
}

// Do announces a cure, asks, and carries it out. Once ctx has ended it does none of these.
func (r *Repair) Do(ctx context.Context, what string, cure func(context.Context) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r.Say(what)
	if r.DryRun {
		return nil
	}
	yes, err := r.Ask("Do it?")
	if err != nil || !yes {
		return err
	}
	if err := cure(ctx); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// start has a start and a stop cure what they do.
func (r *Repair) start(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var mount [][2]string
	count := 0
	for _, f := range r.Findings {
		if f.Cure != ByStart {
			continue
		}
		count++
		r.Say(fmt.Sprintf("%s: %s: %s", f.Code, f.Object, f.What))
		if f.Code == ContentMissing && f.Key != "" {
			mount = append(mount, [2]string{f.Snapshotter, f.Key})
		}
	}
	what := fmt.Sprintf("start lamina on the root and stop it again, which cures these %d", count)
	switch {
	case count == 0 && !r.removed:
		return nil
	case count == 0:
		what = "start lamina on the root and stop it again, which deletes what was removed"
	}
	return r.Do(ctx, what, func(ctx context.Context) error { return r.Start(ctx, mount) })
}

// removeLost removes snapshots whose content is lost, with all that is lost with them.
func (r *Repair) removeLost(ctx context.Context) error {
	lost := map[metadata.ID]bool{}
	for _, f := range r.Findings {
		if f.Cure == ByRemoval && f.ID != 0 {
			lost[f.ID] = true
		}
	}
	if len(lost) == 0 {
		return nil
	}
	if !r.RemoveLost {
		for _, f := range r.Findings {
			if f.Cure == ByRemoval {
				r.Say(fmt.Sprintf("%s: %s: left as it is; --remove-lost removes %q of %s and what is lost with it", f.Code, f.Object, f.Key, f.Snapshotter))
			}
		}
		return nil
	}
	store, err := r.Open()
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range r.Findings {
		if f.Cure == ByRemoval && f.ID != 0 {
			errs = append(errs, r.removeTree(ctx, store, f, lost))
		}
	}
	return errors.Join(append(errs, store.Close())...)
}

// removeTree removes a snapshot and all that is upon it, the topmost first. A power cut leaves the lower ones. If something
// upon it has a content of its own that can be used, nothing is removed.
func (r *Repair) removeTree(ctx context.Context, store *metadata.Store, f Finding, lost map[metadata.ID]bool) error {
	if found, err := store.Recorded(f.ID); err != nil || !found { // it was upon another one
		return err
	}
	c, err := readContents(ctx, store)
	if err != nil {
		return err
	}
	tree, sound, err := treeOf(store, c, f.ID, lost)
	if err != nil {
		return err
	}
	if len(sound) > 0 {
		r.Say(fmt.Sprintf("%s: %s: left to you: upon %q of %s are snapshots that can be used: %s; remove these when you need them no more, and run this again",
			f.Code, f.Object, f.Key, f.Snapshotter, strings.Join(sound, ", ")))
		return nil
	}
	var names []string
	for _, sn := range tree {
		names = append(names, fmt.Sprintf("%q", sn.Key))
	}
	what := fmt.Sprintf("%s: %s: remove of %s the snapshots %s", f.Code, f.Object, f.Snapshotter, strings.Join(names, ", "))
	return r.Do(ctx, what, func(ctx context.Context) error {
		for _, sn := range slices.Backward(tree) {
			if _, err := store.Remove(ctx, sn.Name, sn.Key); err != nil {
				return err
			}
			r.removed = true
		}
		return nil
	})
}

// treeOf returns a snapshot and all that is upon it, and the keys of those among them that are not lost with it: a volume is
// whole without that of its parent.
func treeOf(store *metadata.Store, c contents, id metadata.ID, lost map[metadata.ID]bool) (tree []metadata.Snapshot, sound []string, err error) {
	for ids := []metadata.ID{id}; len(ids) > 0; ids = ids[1:] {
		sn, _, err := store.ChainOf(ids[0])
		if err != nil {
			return nil, nil, err
		}
		tree = append(tree, sn)
		if sn.Placement.Medium == metadata.Volume && !lost[sn.ID] {
			sound = append(sound, fmt.Sprintf("%q", sn.Key))
		}
		for _, child := range c.children[sn.ID] {
			ids = append(ids, child.ID)
		}
	}
	return tree, sound, nil
}
