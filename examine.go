package lamina

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/lamina-snapshotter/lamina/dmthin"
	"github.com/lamina-snapshotter/lamina/doctor"
	"github.com/lamina-snapshotter/lamina/internal/holders"
	"github.com/lamina-snapshotter/lamina/metadata"
)

// Examine looks at a root that no process has open, and calls found with what is not as it should be. It changes nothing.
// The error says what could not be looked at; metadata.ErrLocked that a process has the root.
func Examine(ctx context.Context, c Config, found func(doctor.Finding)) (err error) {
	store, err := c.openToLook(found)
	if store == nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	return doctor.Examine(ctx, c.subject(store), found)
}

// openToLook opens the store to be read. A damaged one is a finding, and then no store is returned.
func (c Config) openToLook(found func(doctor.Finding)) (*metadata.Store, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	path := c.storePath()
	store, err := metadata.Open(path, metadata.Options{ReadOnly: true})
	if errors.Is(err, metadata.ErrNotStore) || errors.Is(err, metadata.ErrDamaged) {
		found(doctor.Damaged(path, err))
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	return store, nil
}

// openToRepair opens the store as openToLook does, once its last write is undone if that is not whole. Who declines that gets
// metadata.ErrCutOff.
func (c Config) openToRepair(ctx context.Context, r *doctor.Repair) (*metadata.Store, error) {
	found := func(f doctor.Finding) { r.Findings = append(r.Findings, f) }
	store, err := c.openToLook(found)
	if !errors.Is(err, metadata.ErrCutOff) {
		return store, err
	}
	undone := false
	if asked := r.Do(ctx, fmt.Sprintf("undo the last write of the store: %v", err), func(context.Context) (err error) {
		undone, err = true, c.undoCutOff()
		return err
	}); asked != nil || !undone {
		return nil, errors.Join(err, asked)
	}
	return c.openToLook(found)
}

// undoCutOff undoes the last write of a store that is not whole.
func (c Config) undoCutOff() error {
	store, err := metadata.Open(c.storePath(), metadata.Options{})
	if err != nil {
		return fmt.Errorf("root: %w", err)
	}
	return store.Close()
}

// subject returns what of a root is examined.
func (c Config) subject(store *metadata.Store) doctor.Subject {
	s := doctor.Subject{
		Root: c.Root, Store: store, UnionRoot: filepath.Join(c.Root, "union"), Thin: c.Thin,
	}
	s.Thin.Root, s.Thin.Store = filepath.Join(c.Root, "thin"), store.UUID()
	s.HoldersOfDevice = func(ctx context.Context, major, minor uint32) ([]string, error) {
		found, err := holders.OfDevice(ctx, major, minor)
		return texts(found), err
	}
	s.HoldersOfDirectory = func(ctx context.Context, dir string) ([]string, error) {
		found, err := holders.OfDirectory(ctx, dir)
		return texts(found), err
	}
	for name := range c.Snapshotters {
		s.Volumes = s.Volumes || c.medium(name) == metadata.Volume
	}
	return s
}

func texts(found []holders.Holder) (texts []string) {
	for _, h := range found {
		texts = append(texts, h.String())
	}
	return texts
}

// Usage calls each with what every volume of a root that no process has open has of the pool. It changes nothing.
func Usage(ctx context.Context, c Config, each func(doctor.Usage)) (err error) {
	var damage error
	store, err := c.openToLook(func(f doctor.Finding) { damage = errors.New(f.What) })
	if store == nil {
		return errors.Join(err, damage)
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	return doctor.Usages(ctx, c.subject(store), each)
}

// Usage is the function of that name for the root that h has open.
func (h *Host) Usage(ctx context.Context, each func(doctor.Usage)) error {
	s := h.config.subject(h.store)
	s.Live = live{h.set, h.thin}
	return doctor.Usages(ctx, s, each)
}

// Examine is the function of that name for the root that h has open, while it serves: what a call under way does for a
// moment is not found.
func (h *Host) Examine(ctx context.Context, found func(doctor.Finding)) error {
	s := h.config.subject(h.store)
	s.Live = live{h.set, h.thin}
	return doctor.Examine(ctx, s, found)
}

var errNoThin = errors.New("there are some, and no snapshotter of the daemon uses the thin backend")

// live is a host as the doctor sees it.
type live struct {
	quiet
	thin *dmthin.Backend
}

// quiet is the part of a snapshotter.Set that tells when it is quiet.
type quiet interface {
	Broken(medium metadata.Medium) error
	Made(ctx context.Context, medium metadata.Medium) error
	Spares(medium metadata.Medium) map[uint64]bool
	Settled(ctx context.Context) error
	Reaped(ctx context.Context, medium metadata.Medium) error
	Alone(ctx context.Context, id metadata.ID, fn func(needed bool) error) error
}

func (l live) Survey(ctx context.Context) (*dmthin.Survey, error) {
	if l.thin == nil {
		return nil, errNoThin
	}
	return l.thin.Survey(ctx)
}

func (l live) VolumesUsage(ctx context.Context) ([]dmthin.VolumeUsage, error) {
	if l.thin == nil {
		return nil, errNoThin
	}
	return l.thin.VolumesUsage(ctx)
}

func (l live) SurveyDevice(ctx context.Context, was dmthin.SurveyedDevice) (dmthin.SurveyedDevice, bool, error) {
	if l.thin == nil {
		return dmthin.SurveyedDevice{}, false, nil
	}
	return l.thin.SurveyDevice(ctx, was)
}

// Repair examines a root that no process has open, and cures what is found. What it does it announces, and asks about,
// through r, whose fields that are about this root it sets. Its error says what could not be looked at or cured.
func Repair(ctx context.Context, c Config, r doctor.Repair) error {
	store, err := c.openToRepair(ctx, &r)
	if err != nil {
		return err
	}
	r.Start = c.recover
	r.Open = func() (*metadata.Store, error) {
		return metadata.Open(c.storePath(), metadata.Options{ReadOnly: r.DryRun})
	}
	if store == nil {
		return r.Run(ctx)
	}
	defer store.Close() //nolint:errcheck // it is open to be read; and closed already if all went well
	s := c.subject(store)
	// What could not be looked at keeps nothing else from its cure.
	unseen := doctor.Examine(ctx, s, func(f doctor.Finding) { r.Findings = append(r.Findings, f) })
	if err := ctx.Err(); err != nil {
		return errors.Join(err, unseen)
	}
	starts, err := store.Starts()
	if err != nil {
		return errors.Join(err, unseen)
	}
	r.Pool = func(ctx context.Context) error {
		done, err := dmthin.RepairMetadata(ctx, s.Thin, starts)
		if err == nil {
			r.Say(poolRepaired(done))
		}
		return err
	}
	r.Unlock = store.Close // until then no daemon can start
	return errors.Join(unseen, r.Run(ctx))
}

// poolRepaired says what the repair of a pool's metadata has done.
func poolRepaired(done dmthin.Repair) string {
	text := fmt.Sprintf("the pool has %d volumes", done.Volumes)
	if done.Kept != "" {
		text += ", and its metadata as they were are kept in " + done.Kept
	}
	if len(done.Lost) > 0 {
		text += fmt.Sprintf("; the volumes %v are lost", done.Lost)
	}
	return text
}

// recover starts on the root and stops again, as the daemon does, which clears away what a crash left. In between it mounts
// what a power cut took of active snapshots, given by snapshotter names and keys, so that it is made again.
func (c Config) recover(ctx context.Context, mount [][2]string) error {
	h, err := Open(ctx, c)
	if err != nil {
		return err
	}
	var errs []error
	for _, which := range mount {
		sn, err := h.Snapshotter(which[0])
		if err == nil {
			_, err = sn.Mounts(ctx, which[1])
		}
		errs = append(errs, err)
	}
	for _, name := range slices.Sorted(maps.Keys(h.snapshotters)) {
		if cleaner, ok := h.snapshotters[name].(snapshots.Cleaner); ok {
			errs = append(errs, cleaner.Cleanup(ctx))
		}
	}
	return errors.Join(append(errs, h.Close())...)
}
