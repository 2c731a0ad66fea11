package dmthin

import (
	"context"
	"errors"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
	"github.com/lamina-snapshotter/lamina/internal/failpoint"
)

// An unchangedError is that of an operation that has changed nothing.
type unchangedError struct{ error }

func (e unchangedError) Unwrap() error { return e.error }

// enlarge makes the device of volume id as large as size, and its file system as large as the device, whoever has it
// mounted. What is that large already stays as it is. An unchangedError says that nothing has.
//
// A kill leaves a device or a file system that is larger, or not yet: the device goes on with either table, as the kernel
// exchanges them in one request. A kill in the moment for which an xfs is frozen (flush) leaves the device suspended: whoever uses
// it waits for the next start, which resumes it.
func (p *Pool) enlarge(ctx context.Context, id uint32, size uint64) error {
	return p.Use(ctx, id, size, false, func(device string) error {
		large, err := isLarge(device, size)
		if err != nil {
			return unchangedError{err}
		}
		if large {
			return nil
		}
		m, err := p.mountLive(ctx, id, device)
		if err != nil {
			return unchangedError{err}
		}
		failpoint.Hit("thin.enlarge-mounted")
		err = p.enlargeMounted(ctx, id, size, m)
		return errors.Join(err, m.close(ctx))
	})
}

// isLarge reports whether a device is as large as size, and its file system as large as the device. That of an xfs that is
// mounted and has grown is not always told by its superblock.
func isLarge(device string, size uint64) (bool, error) {
	has, err := deviceSize(device)
	if err != nil || has < size {
		return false, err
	}
	_, state, err := readState(device)
	return err == nil && state.fills(has), err
}

// fills reports whether a file system is as long as a device of size bytes lets it be.
func (s fsState) fills(size uint64) bool {
	return size/s.blockSize < s.blocks+max(s.tailBlocks, 1)
}

// enlargeMounted gives the device its larger table, and then the file system on it its length.
func (p *Pool) enlargeMounted(ctx context.Context, id uint32, size uint64, m *liveMount) error {
	was, err := deviceSize(m.device)
	if err == nil && !m.fs.replaysGrowth() {
		err = m.sync() // so that the flush below is short
	}
	if err == nil && was < size {
		err = p.lengthen(ctx, id, was, size)
	}
	if err != nil {
		return unchangedError{err}
	}
	failpoint.Hit("thin.enlarge-table")
	err = m.grow()
	failpoint.Hit("thin.enlarge-grown")
	if err == nil && !m.fs.replaysGrowth() {
		// Freezes it, and so empties its log. A power cut before that, when somebody has used the new room already, leaves a
		// file system that such a kernel cannot mount.
		err = p.flush(ctx, id)
	}
	return err
}

// lengthen gives the active device of a volume another length, in bytes. After an error it has the one that it had. I/O waits
// for the moment; nothing is flushed.
func (p *Pool) lengthen(ctx context.Context, id uint32, was, size uint64) error {
	table := func(size uint64) []dm.Target { return []dm.Target{dm.Thin{Pool: p.dev, ID: id}.Target(size / sector)} }
	return p.whileReloaded(ctx, func() error {
		return replaceTable(p.control, p.volumeName(id), false, table(was), table(size))
	})
}
