package dmthin

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
	"github.com/lamina-snapshotter/lamina/internal/failpoint"
)

var (
	// errPoolState is returned when a pool takes no changes any more, until somebody has repaired it.
	errPoolState = fmt.Errorf("the pool takes no changes: %w", errdefs.ErrUnavailable)

	// errMetadataFull is returned when a pool takes no changes until its metadata have room again.
	errMetadataFull = fmt.Errorf("the metadata of the pool are full: remove images or containers, or make room for them: %w", errdefs.ErrResourceExhausted)
)

const repairAdvice = "stop lamina, run `lamina doctor --repair`, and start lamina again"

// unreadable reports whether the kernel could not read the metadata of a pool that it was to start: the checksum of a block is
// wrong, or it is another block (dm-btree-spine.c), or it has not what should be there.
func unreadable(err error) bool {
	return errors.Is(err, unix.EILSEQ) || errors.Is(err, unix.ENOTBLK) || errors.Is(err, unix.EIO) || errors.Is(err, unix.ENODATA)
}

// checkState returns the pool's status, and errPoolState if it is read-only or has failed, or will be so after the next
// resume, or errMetadataFull. One without free blocks of data takes changes.
func (p *Pool) checkState() (dm.PoolStatus, error) {
	status, err := p.control.PoolStatus(p.name)
	if err != nil {
		return status, err
	}
	return status, stateError(p.name, status)
}

func stateError(pool string, status dm.PoolStatus) error {
	writable := status.Mode == dm.PoolReadWrite || status.Mode == dm.PoolOutOfDataSpace
	if writable && !status.NeedsCheck {
		return nil
	}
	if metadataFull(status) {
		return fmt.Errorf("%s: %w", pool, errMetadataFull)
	}
	return fmt.Errorf("%s is in the state %q (needs a check: %t): %s: %w", pool, status.Mode, status.NeedsCheck, repairAdvice, errPoolState)
}

// change sends the pool a message that changes its metadata. When it returns nil the change is durable.
//
// The kernel commits before it answers, and answers success even if that failed (pool_message in drivers/md/dm-thin.c). But
// then it drops all that was not committed and makes the pool read-only, for which nothing but a resume after a repair
// makes up; so a pool that can be written after the message has committed it.
func (p *Pool) change(message func() error) error {
	failpoint.Hit("thin.send")
	err := message()
	failpoint.Hit("thin.sent")
	if errors.Is(err, fs.ErrExist) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EBUSY) {
		return err // it was understood, and changed nothing
	}
	if _, state := p.checkState(); state != nil {
		return state // rather than EOPNOTSUPP
	}
	return err
}
