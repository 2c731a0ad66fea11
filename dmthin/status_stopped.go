package dmthin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
)

// LookAtStatus returns the state of a pool whose Backend is not open: by the kernel if it runs all the same, as volumes of it
// are in use, and by its superblock otherwise, which is as it was when the pool last committed. It changes nothing and starts
// nothing, and takes no lock, so that it is in nobody's way; where somebody writes the place meanwhile it may find it damaged. That there is no pool of the store is fs.ErrNotExist.
func LookAtStatus(ctx context.Context, c Config) (s Status, err error) {
	c = c.withDefaults()
	if err := c.Validate(); err != nil {
		return Status{}, err
	}
	control, err := dm.Open()
	if errors.Is(err, errors.ErrUnsupported) {
		control = nil // so there is no device
	} else if err != nil {
		return Status{}, err
	} else {
		defer func() { err = errors.Join(err, control.Close()) }()
	}
	p := c.shared(control)
	defer func() { err = errors.Join(err, p.close()) }()
	uuid, err := p.owner(ctx)
	if err != nil {
		return Status{}, err
	}
	if uuid == "" || uuid != c.Store {
		return Status{}, fmt.Errorf("the store has no pool here: %w", fs.ErrNotExist)
	}
	var found Survey
	if control != nil {
		if err := found.lookAtPool(control, c.Store); err != nil {
			return Status{}, err
		}
	}
	if !found.Pool.Running {
		if found.Pool, err = lookAtSuperblock(p); err != nil {
			return Status{}, err
		}
	}
	l, err := p.limits()
	if err != nil {
		return Status{}, err
	}
	return found.Pool.status(c, l), nil
}

func lookAtSuperblock(p place) (pool SurveyedPool, err error) {
	m, err := p.metadata()
	if err != nil {
		return SurveyedPool{}, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	sb, err := readSuperblock(m)
	if errors.Is(err, errNoPool) {
		err = fmt.Errorf("%w: %w", err, fs.ErrNotExist)
	}
	return sb.surveyed(), err
}

// status is the state of a pool that a survey has found, and that can become as large as the limits say.
func (p SurveyedPool) status(c Config, l limits) Status {
	f := fill{block: max(p.BlockSize, minBlock), limits: l}
	f.DataTotal, f.DataUsed = p.Data.Total/f.block, p.Data.Used/f.block
	headroom, room := f.headroom(), f.room()
	return Status{
		Name: prefix(c.Store) + "-pool", Mode: p.Mode, NeedsCheck: p.NeedsCheck, TransactionID: p.Start, BlockSize: p.BlockSize,
		Data: p.Data, Metadata: p.Metadata, On: l.on,
		Reserve: c.reserve(p.Data.Total), Headroom: &headroom, Room: &room, Limit: f.limit(),
	}
}

// FindVolume returns the device of a volume of a store, whoever has its pool open; ok is false if there is none. It waits for
// nobody, so what an operation does for a moment is seen.
func FindVolume(store string, volume uint32) (d SurveyedDevice, ok bool, err error) {
	control, err := dm.Open()
	if errors.Is(err, errors.ErrUnsupported) {
		return d, false, nil
	}
	if err != nil {
		return d, false, err
	}
	defer func() { err = errors.Join(err, control.Close()) }()
	pool, err := poolNumber(control, store)
	if err != nil {
		return d, false, err
	}
	d, err = lookAtDevice(control, store, prefix(store)+"-"+number(volume), pool)
	if errors.Is(err, fs.ErrNotExist) {
		return SurveyedDevice{}, false, nil
	}
	return d, err == nil, err
}

// Node returns the path at which the device is reached.
func (d SurveyedDevice) Node() string { return dm.Node(d.Name) }
