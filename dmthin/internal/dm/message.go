package dm

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Message sends text to the target at sector of a device, or, if it begins with '@', to the device mapper itself. It
// returns what was answered, mostly nothing. It is sent once: an answer longer than 1 KiB is ENOBUFS, and the message has
// been carried out then.
func (c *Control) Message(name string, sector uint64, text string) (string, error) {
	return c.message(fmt.Sprintf("message %q", text), name, sector, text)
}

// message is Message with another Op.
func (c *Control) message(op, name string, sector uint64, text string) (string, error) {
	req := request{cmd: unix.DM_TARGET_MSG, op: op, name: name, room: smallRoom, once: true}
	if strings.Contains(text, "\x00") {
		return "", req.fail(invalid("the message holds a NUL"))
	}
	req.data = appendRaw(nil, unix.DmTargetMsg{Sector: sector})
	req.data = append(append(req.data, text...), 0)
	r, err := c.onDevice(req)
	if err != nil || r.hdr.Flags&unix.DM_DATA_OUT_FLAG == 0 {
		return "", err
	}
	answer, err := stringAt(r.data, 0)
	if err != nil {
		return "", req.fail(err)
	}
	return answer, nil
}

// CreateThin makes an empty volume in a pool. EEXIST says that the pool has the id already.
//
// A pool commits its metadata before it answers a message that changes it, but does not say whether it could
// (pool_message in drivers/md/dm-thin.c): if not, nothing of it stays, and the pool is read-only or has failed. So what
// CreateThin, CreateSnap, DeleteThin and SetTransactionID have done is durable if [Control.PoolStatus] then shows a pool
// that can be written and needs no check. EOPNOTSUPP says that it could not be written before.
func (c *Control) CreateThin(pool string, id uint32) error {
	return c.poolMessage(pool, fmt.Sprintf("create thin %d", id), "create_thin", uint64(id))
}

// CreateSnap makes the volume id a snapshot of the volume origin. EEXIST says that the pool has id already, ENODATA that
// it does not have origin. If origin is active it must be suspended, and resumed afterwards: the kernel does not check,
// and the data are corrupt otherwise.
func (c *Control) CreateSnap(pool string, id, origin uint32) error {
	return c.poolMessage(pool, fmt.Sprintf("create snap %d of %d", id, origin), "create_snap", uint64(id), uint64(origin))
}

// DeleteThin deletes a volume. EBUSY says that it is active, ENODATA that the pool does not have it.
func (c *Control) DeleteThin(pool string, id uint32) error {
	return c.poolMessage(pool, fmt.Sprintf("delete thin %d", id), "delete", uint64(id))
}

// SetTransactionID replaces the pool's transaction id, a number for its user alone, if it is current. EINVAL says that it
// is another.
func (c *Control) SetTransactionID(pool string, current, next uint64) error {
	op := fmt.Sprintf("set transaction id %d to %d", current, next)
	_, err := c.message(op, pool, 0, fmt.Sprintf("set_transaction_id %d %d", current, next))
	return err
}

// ReserveMetadataSnap keeps the metadata as they are now for programs to read from the metadata device, at the held root
// of the pool's status. A pool has one such snapshot: EBUSY says that there is one.
func (c *Control) ReserveMetadataSnap(pool string) error {
	return c.poolMessage(pool, "reserve metadata snap", "reserve_metadata_snap")
}

// ReleaseMetadataSnap gives the reserved metadata snapshot up. EINVAL says that there is none.
func (c *Control) ReleaseMetadataSnap(pool string) error {
	return c.poolMessage(pool, "release metadata snap", "release_metadata_snap")
}

// poolMessage sends a message of a word and thin ids to a pool.
func (c *Control) poolMessage(pool, op, word string, ids ...uint64) error {
	var text strings.Builder
	text.WriteString(word)
	for _, id := range ids {
		if id > MaxThinID {
			return &OpError{Op: op, Device: pool, Err: invalid("thin id %d above %d", id, MaxThinID)}
		}
		fmt.Fprintf(&text, " %d", id)
	}
	_, err := c.message(op, pool, 0, text.String())
	return err
}
