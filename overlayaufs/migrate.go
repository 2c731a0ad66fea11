package overlayaufs

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/internal/failpoint"
	"github.com/lamina-snapshotter/lamina/overlayaufs/internal/quota"
)

var (
	// ErrForm is returned when a migration names a form that there is not, or one form twice.
	ErrForm = errors.New("no migration")

	// ErrMounted is returned when layers that are to be migrated are mounted.
	ErrMounted = errors.New("layers are mounted")

	// ErrUntranslatable is returned when layers cannot be said in the other form. Nothing was changed.
	ErrUntranslatable = errors.New("layers that cannot be migrated")
)

// A Migration says what [Migrate] is to do.
type Migration struct {
	From, To string  // "aufs" and "overlay", or the other way round
	Layers   []Layer // all that have a record in the store, in any order
	DryRun   bool    // only look

	// Progress is called after each directory and each layer, if it is set: it must be quick.
	Progress func(Progress)
}

// A Layer is a content that is to be migrated.
type Layer struct {
	ID      uint64
	Project uint32    // 0 for none
	Below   []Content // down to the base, the topmost first
	Name    string    // for people
}

// Progress is how far a migration is.
type Progress struct {
	Looking      bool // for what cannot be translated, before anything is
	Layers, Done int
	Counts       Counts // of those that are done, and of the one that is not
}

// Outcome is what a migration has done, or, as a dry run, would do.
type Outcome struct {
	Already bool // nothing, as the layers were in that form
	Resumed bool // the rest of one that was cut short
	Layers  int
	Counts  Counts // of a resumed one, what was done this time

	// TooLong are the layers with more layers below than aufs can mount with them, if it is to be aufs.
	TooLong Chains
}

// Migrate translates the layers of a place from one form to the other, so that the other union file system can mount them.
// Nobody may have the place open: the caller holds the store's lock. It takes a while for each file, and needs neither of
// the two file systems.
//
// Whatever has no record is left as it is: the next start deletes it.
//
// What a kill or a power cut leaves:
//
//   - before the owner file says that the layers are being migrated: all as it was;
//   - from then on: a place that Open refuses, and Migrate goes on with, in the same direction. See translation;
//   - the owner file says the new form when a syncfs has put all layers on the disk: all is done.
func Migrate(ctx context.Context, cfg Config, m Migration) (Outcome, error) {
	how, err := m.manner()
	if err == nil {
		err = cfg.checkRoot()
	}
	if err != nil {
		return Outcome{}, err
	}
	was, err := readOwner(cfg.Root)
	if err != nil {
		return Outcome{}, err
	}
	if was.UUID == "" && len(m.Layers) > 0 {
		return Outcome{}, fmt.Errorf("%s is empty, and %d layers have a record: is its file system mounted?", cfg.Root, len(m.Layers))
	}
	if was.UUID == "" {
		return Outcome{}, fmt.Errorf("%s has no layers yet: there is nothing to migrate", cfg.Root)
	}
	out := Outcome{Layers: len(m.Layers), Resumed: was.Migrating != "", TooLong: how.tooLong(m.Layers)}
	switch {
	case out.Resumed && was.Form != how.from:
		return out, was.checkSettled(cfg.Root)
	case !out.Resumed && was.Form == how.to:
		return Outcome{Already: true}, nil
	}
	b, err := newBackend(cfg)
	if err != nil {
		return out, err
	}
	b.askProjects(cfg)
	b.unseen = "make sure that none of them mounts a layer"
	g := &migration{Backend: b, Migration: m, manner: how, owner: was}
	err = g.chooseAttrs(cfg.UserXattr)
	if err == nil {
		out.Counts, err = g.run(ctx)
	}
	return out, explainMigration(errors.Join(err, b.Close()), b.root)
}

// Validate returns ErrForm if the words of a migration name none.
func (m Migration) Validate() error {
	_, err := m.manner()
	return err
}

// manner returns the forms that a migration is between.
func (m Migration) manner() (how manner, err error) {
	how.from, err = parseForm(m.From)
	if err == nil {
		how.to, err = parseForm(m.To)
	}
	if err == nil && how.from == how.to {
		err = errors.New("from and to are the same")
	}
	if err != nil {
		return how, fmt.Errorf("%w: %w", ErrForm, err)
	}
	return how, nil
}

// A migration is one run of Migrate.
type migration struct {
	*Backend
	Migration
	manner
	owner owner // as the file is
}

// chooseAttrs finds out which attributes overlayfs has or will have. New ones are as the config says, and where it says nothing
// those that may be written. They are tried, as a process that may not see them is told that there are none.
func (g *migration) chooseAttrs(setting string) error {
	user := g.owner.UserXattr
	if g.from == formAufs && g.owner.Migrating == "" {
		user = setting == on || setting != off && g.tryAttr(trustedPrefix) != nil
	}
	g.attrs = trustedPrefix
	if user {
		g.attrs = userPrefix
	}
	return g.tryAttr(g.attrs)
}

// tryAttr sets an attribute of the root and takes it away again; one that a cut leaves there does nothing.
func (g *migration) tryAttr(prefix string) error {
	return g.onRoot("set "+prefix+timeAttr, func(fd int) error {
		return cmp.Or(unix.Fsetxattr(fd, prefix+timeAttr, nil, 0), removeAttr(fd, prefix+timeAttr))
	})
}

func (g *migration) run(ctx context.Context) (counts Counts, err error) {
	if err := g.checkMounted(ctx); err != nil {
		return counts, err
	}
	// Children come before their parents, which a child finds as they were.
	slices.SortFunc(g.Layers, func(a, b Layer) int {
		return cmp.Or(cmp.Compare(len(b.Below), len(a.Below)), cmp.Compare(a.ID, b.ID))
	})
	if g.owner.Migrating == "" {
		if counts, err = g.inspect(ctx); err == nil {
			err = g.checkRoom(counts)
		}
		if err != nil || g.DryRun {
			return counts, err
		}
		next := g.owner
		next.Migrating, next.UserXattr = g.to.String(), g.attrs == userPrefix
		if err := g.record(ctx, next); err != nil {
			return counts, err
		}
		failpoint.Hit("migrate.begun")
	} else if g.DryRun {
		return counts, nil
	}
	if counts, err = g.translate(ctx); errors.Is(err, unix.ENOSPC) && g.giveUpReserve(ctx) {
		counts, err = g.translate(ctx)
	}
	if err == nil {
		err = g.finish(ctx)
	}
	if err != nil {
		return counts, fmt.Errorf("%w; run the same command again to go on, until then lamina does not start", err)
	}
	return counts, nil
}

// checkMounted refuses to change what somebody sees.
func (g *migration) checkMounted(ctx context.Context) error {
	contents := make([]Content, len(g.Layers))
	for i, l := range g.Layers {
		contents[i] = Content{ID: l.ID}
	}
	busy, err := g.Busy(ctx, contents)
	if err != nil || len(busy) == 0 {
		return err
	}
	i := slices.IndexFunc(g.Layers, func(l Layer) bool { return l.ID == busy[0] })
	users, err := g.Users(ctx, contents[i])
	if err != nil {
		return err
	}
	return fmt.Errorf("%w: %d of %d, such as %s (%s), in use by %s: stop the containers and unmount what they leave",
		ErrMounted, len(busy), len(g.Layers), g.path(busy[0]), g.Layers[i].Name, users)
}

// below returns the layers below one.
func (g *migration) below(fd int, l Layer) *stack {
	return &stack{root: fd, layers: l.Below, attrs: g.attrs}
}

// inspect looks at all layers before anything is changed.
func (g *migration) inspect(ctx context.Context) (counts Counts, err error) {
	var refused []error
	err = g.each(true, func(fd int, l Layer, name string, tell tell) (Counts, error) {
		c, why, err := inspect(ctx, fd, name, g.manner, g.below(fd, l), tell.after(counts))
		for _, w := range why {
			refused = append(refused, fmt.Errorf("%s (%s): %w", g.path(l.ID, fsName), l.Name, w))
		}
		counts.add(c)
		return counts, err
	})
	if err == nil && len(refused) > 0 {
		err = fmt.Errorf("%w, and nothing was changed; remove their snapshots, or what is in the way:\n%w", ErrUntranslatable, errors.Join(refused...))
	}
	return counts, err
}

// translate translates all layers. Those that are translated already take a walk.
//
// The marks of a layer may take more inodes in the other form, and must not meet the limits of a container: xfs holds root to them.
// So these are lifted before its first mark, whatever is cut short is translated without them, and the next start sets them again.
func (g *migration) translate(ctx context.Context) (counts Counts, err error) {
	err = g.each(false, func(fd int, l Layer, name string, tell tell) (Counts, error) {
		if err := g.bound(l.Project, quota.Limits{}); err != nil {
			return counts, err
		}
		c, err := translate(ctx, fd, name, g.manner, g.below(fd, l), tell.after(counts))
		counts.add(c)
		if err == nil && g.to == formAufs {
			err = removeIndex(ctx, fd, l)
		}
		failpoint.Hit("migrate.layer-translated")
		return counts, err
	})
	return counts, err
}

// removeIndex removes the index that overlayfs may have beside a layer: it would not be right any more when overlayfs comes back.
func removeIndex(ctx context.Context, fd int, l Layer) error {
	return removeTree(ctx, fd, filepath.Join(strconv.FormatUint(l.ID, 10), workName, "index"))
}

// A tell tells how much is done.
type tell func(Counts)

// after tells of what is done after c.
func (t tell) after(c Counts) tell {
	return func(more Counts) {
		more.add(c)
		t(more)
	}
}

// each calls fn with each layer, where it lies in the open root, and what tells of the progress in it. fn returns the counts up
// to now.
func (g *migration) each(looking bool, fn func(fd int, l Layer, name string, tell tell) (Counts, error)) error {
	show := func(done int, counts Counts) {
		if g.Progress != nil {
			g.Progress(Progress{Looking: looking, Layers: len(g.Layers), Done: done, Counts: counts})
		}
	}
	for i, l := range g.Layers {
		var counts Counts
		err := g.onRoot("migrate", func(fd int) (err error) {
			counts, err = fn(fd, l, filepath.Join(strconv.FormatUint(l.ID, 10), fsName), func(c Counts) { show(i, c) })
			return err
		})
		if err != nil {
			return fmt.Errorf("layer %s (%s): %w", g.path(l.ID), l.Name, err)
		}
		show(i+1, counts)
	}
	return nil
}

// finish records the new form once all layers are on the disk. Until then the file says that they are being migrated, which is
// true of layers of which a power cut takes the last changes.
func (g *migration) finish(ctx context.Context) error {
	if err := g.syncfs(); err != nil {
		return err
	}
	failpoint.Hit("migrate.synced")
	next := owner{UUID: g.owner.UUID, Start: g.owner.Start, Form: g.to}
	next.UserXattr = g.to == formOverlay && g.attrs == userPrefix
	return g.record(ctx, next)
}

// record replaces the owner file. At return it is durable.
func (g *migration) record(ctx context.Context, next owner) error {
	data, err := json.Marshal(next)
	if err == nil {
		err = g.writeOwner(ctx, data)
	}
	if err == nil {
		g.owner = next
	}
	return err
}
