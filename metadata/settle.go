package metadata

import (
	"bytes"
	"errors"
	"fmt"

	bolt "go.etcd.io/bbolt"

	"github.com/lamina-snapshotter/lamina/internal/failpoint"
)

// begin takes over a store as it was judged, and makes one of an older version the newest.
//
// An older version has no stamps, and neither has a copy that bbolt has made. Such a store is made the newest in a commit that
// bbolt syncs as it does, its pages before its meta page, so it is durable as a whole or did not happen; whoever finds the
// newest version without a stamp, as of a new store too, writes the stamp.
func (b *batcher) begin(judged judgement) error {
	err := b.db.View(func(btx *bolt.Tx) error {
		if uint64(btx.ID()) != judged.page.txid() { // it was written between two locks
			return ErrLocked
		}
		return nil
	})
	if err != nil {
		return err
	}
	b.txid, b.summer.sum, b.unsettled = judged.page.txid(), judged.sum, !judged.page.settled
	if judged.page.stamped {
		// What was judged was on the disk: settleCache. Whether the disk notes that now is of no matter.
		if b.unsettled {
			_ = b.stamps.write(settledAt, b.txid, b.summer.sum)
		}
		return nil
	}
	// A copy by bbolt has its newest transaction on page 0, whichever it is: the stamp would miss it.
	misplaced := judged.page.id != judged.page.txid()%2
	if err := b.upgrade(misplaced); err != nil && !errors.Is(err, errNewest) {
		return fmt.Errorf("bring the store to version %d: %w", schemaVersion, err)
	}
	return errors.Join(b.settle(), b.stamps.verify(b.txid))
}

var errNewest = errors.New("it has the newest version")

// upgrade gives a store the newest version. Of one that has it, it returns errNewest, unless it is to write it again.
func (b *batcher) upgrade(again bool) error {
	b.db.NoSync = false
	defer func() { b.db.NoSync = true }()
	return b.db.Update(func(btx *bolt.Tx) error {
		t := &tx{Tx: btx, summer: b.summer}
		meta := t.Bucket(bucketMeta)
		if !again && bytes.Equal(meta.Get(keyVersion), key8(schemaVersion)) {
			return errNewest
		}
		err := errors.Join(t.put(bucketMeta, keyVersion, key8(schemaVersion)), t.put(bucketMeta, keySum, metaSum(meta)))
		btx.OnCommit(func() { b.txid, b.summer = b.txid+1, t.summer })
		return err
	})
}

// settle has the disk note that the last transaction is durable. What is wrong with it from then on is damage, and no commit that
// was cut off. It writes a second stamp, so that half of one leaves the first. Nothing may commit meanwhile.
func (b *batcher) settle() error {
	if !b.unsettled {
		return nil
	}
	if err := b.stamps.write(settledAt, b.txid, b.summer.sum); err != nil {
		return err
	}
	failpoint.Hit("store.settling")
	if err := b.sync(); err != nil {
		return err
	}
	failpoint.Hit("store.settled")
	b.unsettled = false
	return nil
}

// close settles the store, and closes it and the batcher's own files. A commit that comes later finds it closed, and one
// that is under way is waited for: its sync must not meet another file under the number of this one. It may be called again.
func (b *batcher) close() error {
	b.committing.Lock()
	defer b.committing.Unlock()
	if b.closed {
		return nil
	}
	b.closed = true
	return errors.Join(b.settle(), b.closeFiles())
}

// closeFiles is close, and settles nothing.
func (b *batcher) closeFiles() error {
	return errors.Join(b.db.Close(), b.room.close(), b.stamps.close())
}
