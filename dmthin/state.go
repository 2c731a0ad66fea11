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

// errPoolState is returned when a pool takes no changes any more, until somebody has repaired it.
var errPoolState = fmt.Errorf("the pool takes no changes: %w", errdefs.ErrUnavailable)

// checkState returns the pool's status, and errPoolState if it is read-only or has failed, or will be so after the next
// resume. One without free blocks of data takes changes.
func (p *Pool) checkState() (dm.PoolStatus, error) {
	status, err := p.control.PoolStatus(p.name)
	if err != nil {
		return status, err
	}
	writable := status.Mode == dm.PoolReadWrite || status.Mode == dm.PoolOutOfDataSpace
	if writable && !status.NeedsCheck {
		return status, nil
	}
	return status, fmt.Errorf("%s is in the state %q (needs a check: %t): stop lamina, run thin_check --clear-needs-check-flag on its metadata, "+
		"or thin_repair if that finds damage, and start lamina again: %w", p.name, status.Mode, status.NeedsCheck, errPoolState)
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
