package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/lamina-snapshotter/lamina/dmthin"
	"github.com/lamina-snapshotter/lamina/metadata"
	"github.com/lamina-snapshotter/lamina/overlayaufs"
)

// A Subject is what is examined: a root and what belongs to it.
type Subject struct {
	Root  string // where lamina.db lies
	Store *metadata.Store

	UnionRoot string // where the union backend keeps its directories
	// Thin is the configuration of the thin backend. It is looked at if Volumes says so, or the store has volumes.
	Thin    dmthin.Config
	Volumes bool

	// Live is the daemon in which this runs, nil if there is none.
	Live Live

	// HoldersOfDevice and HoldersOfDirectory name who uses what is in the way, if they are set.
	HoldersOfDevice    func(ctx context.Context, major, minor uint32) ([]string, error)
	HoldersOfDirectory func(ctx context.Context, dir string) ([]string, error)
}

// Live is a daemon at work, whose operations must not be taken for damage.
type Live interface {
	// Broken returns why the backend of a medium could not be started, nil if it could or there is none. Nobody has its
	// place open then.
	Broken(medium metadata.Medium) error

	// Made returns when every content of a medium whose making is under way has its record, or is gone.
	Made(ctx context.Context, medium metadata.Medium) error

	// Spares returns the contents of a medium that a comparison under way has made for itself. Neither a record nor the trash has them.
	Spares(medium metadata.Medium) map[uint64]bool

	// Settled returns when the devices that snapshots need are there, and those that they needed are not.
	Settled(ctx context.Context) error

	// Reaped returns when what is in the trash of a medium has been deleted, or why something could not be. What somebody
	// uses stays, which is no error.
	Reaped(ctx context.Context, medium metadata.Medium) error

	// Alone calls fn while nobody works on the snapshot of an id. needed is whether it is active or a view shows it. A
	// snapshot that is gone is metadata.ErrNotExist.
	Alone(ctx context.Context, id metadata.ID, fn func(needed bool) error) error

	// Survey and SurveyDevice are those of the backend of volumes that the daemon has open. Without one Survey is an error.
	Survey(ctx context.Context) (*dmthin.Survey, error)
	SurveyDevice(ctx context.Context, was dmthin.SurveyedDevice) (d dmthin.SurveyedDevice, ok bool, err error)

	// VolumesUsage is that of the same backend.
	VolumesUsage(ctx context.Context) ([]dmthin.VolumeUsage, error)
}

const (
	// Limit is how long an examination takes at most: a disk that hangs is then said not to have answered.
	Limit = 5 * time.Minute

	// quietWait bounds what an examination waits for operations of a daemon to end, and lookWait its look at one place.
	quietWait = time.Minute
	lookWait  = time.Minute
)

var (
	errLimit = fmt.Errorf("the examination has not ended within %s", Limit)
	errHangs = fmt.Errorf("the disk has not answered within %s", lookWait)
)

// Examine calls found with everything that is not as it should be, ordered by code and object. Its error says what could
// not be looked at, all of it joined; the findings are then of the rest. It ends within [Limit].
func Examine(ctx context.Context, s Subject, found func(Finding)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, Limit, errLimit)
	defer cancel()
	var all []Finding
	e := &examination{Subject: s, found: func(f Finding) { all = append(all, f) }}
	err := e.run(ctx)
	slices.SortFunc(all, func(a, b Finding) int {
		return cmp.Or(strings.Compare(string(a.Code), string(b.Code)), cmp.Compare(a.ID, b.ID), strings.Compare(a.Object, b.Object))
	})
	for _, f := range all {
		found(f)
	}
	return err
}

func (e *examination) run(ctx context.Context) error {
	if err := e.store(ctx); err != nil {
		return fmt.Errorf("the store: %w", err)
	}
	var errs []error
	for _, part := range []struct {
		what string
		look func(context.Context) error
	}{
		{"the directories", e.union},
		{"the volumes", e.thin},
		{"the trash", e.trash},
		{"the mounts of directories", e.directoryMounts},
		{"the mounts of volumes", e.volumeMounts},
	} {
		if err := part.look(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", part.what, err))
		}
	}
	return errors.Join(errs...)
}

// An examination is one run of Examine.
type examination struct {
	Subject
	found func(Finding)

	first  contents // what the store says before anything else is looked at
	starts uint64

	devicesSeen []dmthin.SurveyedDevice // by the first look at the pool
}

// unionSurvey and thinSurvey look at what lies there now.
func (e *examination) unionSurvey(ctx context.Context) (*overlayaufs.Survey, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, lookWait, errHangs)
	defer cancel()
	return unhung(ctx, func() (*overlayaufs.Survey, error) { return overlayaufs.Look(ctx, e.UnionRoot) })
}

func (e *examination) thinSurvey(ctx context.Context) (*dmthin.Survey, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, lookWait, errHangs)
	defer cancel()
	return unhung(ctx, func() (*dmthin.Survey, error) {
		if e.Live != nil && e.Live.Broken(metadata.Volume) == nil {
			return e.Live.Survey(ctx)
		}
		return dmthin.Look(ctx, e.Thin)
	})
}

// store checks the store in itself and reads what the rest is compared with.
func (e *examination) store(ctx context.Context) (err error) {
	db := filepath.Join(e.Root, "lamina.db")
	for problem, err := range e.Store.Check(ctx) {
		if errors.Is(err, metadata.ErrDamaged) {
			e.found(finding(StoreDamaged, db, "%v", err))
			continue
		}
		if err != nil {
			return err
		}
		e.found(finding(StoreInconsistent, db, "%s", problem))
	}
	if e.starts, err = e.Store.Starts(); err != nil {
		return err
	}
	e.first, err = readContents(ctx, e.Store)
	return err
}

// settled waits, in a daemon, until what was under way with contents of a medium has ended.
func (e *examination) settled(ctx context.Context, medium metadata.Medium) error {
	ctx, cancel := context.WithTimeout(ctx, quietWait)
	defer cancel()
	if err := e.Live.Made(ctx, medium); err != nil || medium != metadata.Volume {
		return err // a directory has nothing in the kernel that is to be settled
	}
	return e.Live.Settled(ctx)
}

// again returns what the store says after whatever was under way with contents of a medium when they were looked at has
// ended. One medium is not held up by another that hangs.
func (e *examination) again(ctx context.Context, medium metadata.Medium) (contents, error) {
	if e.Live == nil {
		return e.first, nil
	}
	if err := e.settled(ctx, medium); err != nil {
		return contents{}, err
	}
	return readContents(ctx, e.Store)
}

// of completes a finding with the snapshot that it concerns.
func (e *examination) of(f Finding, id metadata.ID) Finding {
	f.ID = id
	if sn, _, err := e.Store.ChainOf(id); err == nil {
		f.Snapshotter, f.Key = sn.Name, sn.Key
	}
	return f
}

// place compares the owner of a place with the store, and reports whether it is this store's.
func (e *examination) place(what, uuid string, start uint64, empty bool, known int) bool {
	switch {
	case uuid == "" && known > 0 && empty:
		e.found(finding(PlaceEmpty, what, "it is empty, and the store knows %d contents in it", known))
		return false
	case uuid == "" && !empty:
		e.found(finding(PlaceEmpty, what, "nothing says whose it is, and the store knows %d contents in it", known))
		return false
	case uuid == "":
		return true
	case uuid != e.Store.UUID():
		e.found(finding(PlaceForeign, what, "it belongs to the store %s, and this is %s", uuid, e.Store.UUID()))
		return false
	case start > e.starts && e.Live == nil:
		e.found(finding(PlaceNewer, what, "it has seen start %d of the store, which stands at %d", start, e.starts))
		return false
	}
	return true
}

// Damaged returns the finding of a store that cannot be opened because of what is in it.
func Damaged(path string, err error) Finding { return finding(StoreDamaged, path, "%v", err) }
