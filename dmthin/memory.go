package dmthin

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	"golang.org/x/sys/unix"
)

// cleanTime bounds the replay of a journal before a content is shown.
const cleanTime = time.Minute

// memory is what was found out about contents, so that it is found out once: it takes a read of the volume, and of one that
// has no device the device as well. Nothing of it is needed: after a restart it is found out again.
type memory struct {
	mu       sync.Mutex
	facts    map[uint64]facts
	changes  uint64             // of all contents, so that what was found out before a change is not remembered after it
	cleaning singleflight.Group // by id
}

// facts are what is known of one content.
type facts struct {
	kind   filesystem // nil if it is not known
	frozen *figures   // of a content that does not change; nil if they are not known
	clean  bool       // frozen, and with an empty journal
	fits   bool       // as large as its record says, with its file system
	copyOf copied     // what it is a copy of, bit for bit, as nobody has had it to write
	gone   bool       // a copy to compare with, which has been deleted
}

// A copied is the frozen content that another is a copy of, and what was known of that before it was copied. A journal that has been
// replayed since is still in the copy.
type copied struct {
	id    uint64 // 0 if there is none
	kind  filesystem
	clean bool
}

// ready makes a content that has its device ready to be mounted, to be written, and returns its file system. What was known of the
// content that it is still a copy of, if of any, is known of it too, and needs no look at its device.
func (b *Backend) ready(ctx context.Context, volume uint32, c Content, of copied) (kind filesystem, err error) {
	if of.id == 0 {
		if kind, err = b.kind(ctx, volume, c); err != nil {
			return nil, err
		}
		return kind, b.mend(ctx, volume, kind)
	}
	if of.kind == nil || !of.clean {
		if of.kind, of.clean, err = b.look(ctx, volume); err != nil {
			return nil, err
		}
		b.note(of.id, func(f *facts) { f.kind, f.clean = of.kind, f.clean || of.clean })
	}
	b.note(c.ID, func(f *facts) { f.kind = of.kind })
	return of.kind, nil
}

// look is kind and mend for a content that nobody has written, and reports whether its journal was empty.
func (b *Backend) look(ctx context.Context, volume uint32) (kind filesystem, clean bool, err error) {
	var (
		found   filesystem // not the results themselves, which are written when fn may still be running
		state   fsState
		changed bool
	)
	err = b.pool.do(ctx, func() (err error) {
		device := b.pool.Path(volume)
		if found, state, err = readState(device); err != nil {
			return err
		}
		changed, err = found.mend(device)
		if errors.Is(err, unix.EBUSY) { // somebody has it mounted already
			changed, err = true, nil
		}
		return err
	}, volume)
	if err != nil {
		return nil, false, err
	}
	return found, !state.dirty && !changed, nil
}

// kind returns the file system of a content, which is volume.
func (b *Backend) kind(ctx context.Context, volume uint32, c Content) (filesystem, error) {
	if known := b.known(c.ID); known.kind != nil {
		return known.kind, nil
	}
	var kind filesystem
	if err := b.pool.Use(ctx, volume, c.Size, true, func(device string) (err error) {
		kind, err = probe(device)
		return err
	}); err != nil {
		return nil, err
	}
	b.note(c.ID, func(f *facts) { f.kind = kind })
	return kind, nil
}

// replay replays the journal of a volume that is active, to be written. EBUSY says that it is mounted.
func (b *Backend) replay(ctx context.Context, volume uint32, size uint64) error {
	return b.pool.Use(ctx, volume, size, false, func(device string) error { return replay(ctx, device) })
}

// mend makes up for an unmount in a full pool, unless somebody has the volume mounted, which is active.
func (b *Backend) mend(ctx context.Context, volume uint32, kind filesystem) error {
	return b.pool.do(ctx, func() error {
		if _, err := kind.mend(b.pool.Path(volume)); !errors.Is(err, unix.EBUSY) {
			return err
		}
		return nil
	}, volume)
}

func (m *memory) known(id uint64) facts {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.facts[id]
}

func (m *memory) note(id uint64, change func(*facts)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.facts[id]
	change(&f)
	if m.facts == nil {
		m.facts = map[uint64]facts{}
	}
	m.facts[id] = f
}

// now returns the moment from which on [memory.remember] looks for changes.
func (m *memory) now() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changes
}

// remember notes what a frozen content holds, unless a content has changed since that moment: it may be this one.
func (m *memory) remember(id uint64, f figures, since uint64) {
	m.note(id, func(known *facts) {
		if m.changes == since {
			known.frozen = &f
		}
	})
}

// thaw notes that a content may be written, and returns what it was a copy of until now.
func (m *memory) thaw(id uint64) (of copied) {
	m.note(id, func(f *facts) {
		of = f.copyOf
		f.frozen, f.clean, f.copyOf = nil, false, copied{}
		m.changes++
	})
	return of
}

// forget notes that a content becomes another one, or none.
func (m *memory) forget(id uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.facts, id)
	m.changes++
}

// clean replays the journal of a frozen content before it is shown for the first time, if it was not unmounted when it was
// committed, and then the power went: who shows it passes over the journal. One that is still mounted is left as it is.
func (b *Backend) clean(ctx context.Context, c Content, volume uint32) error {
	cleaned := b.cleaning.DoChan(number(volume), func() (any, error) {
		// It is for all who wait, so it does not end with the context of the one who was first.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTime)
		defer cancel()
		return nil, b.cleanOnce(ctx, c, volume)
	})
	select {
	case result := <-cleaned:
		return result.Err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (b *Backend) cleanOnce(ctx context.Context, c Content, volume uint32) error {
	if b.known(c.ID).clean {
		return nil
	}
	_, err := b.pool.Activate(ctx, volume, c.Size, false)
	shown := errors.Is(err, unix.EBUSY) // so it was clean
	if err != nil && !shown {
		return err
	}
	if !shown {
		err = b.replay(ctx, volume, c.Size)
		if errors.Is(err, unix.EBUSY) { // it is mounted, to be written
			return nil
		}
		if err != nil {
			return err
		}
	}
	b.note(c.ID, func(f *facts) { f.clean = true })
	return nil
}
