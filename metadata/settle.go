package metadata

import (
	"bytes"
	"errors"
	"fmt"

	bolt "go.etcd.io/bbolt"
)

// begin takes over a store as it was judged, and makes one of an older version the newest.
//
// That has no stamps. The commit that changes its version is synced as bbolt does it, its pages before its meta page, so it
// is durable as a whole or did not happen, and whoever finds the newest version without a stamp, as of a new store too, writes
// the stamp.
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
		return nil
	}
	if err := b.upgrade(); err != nil && !errors.Is(err, errNewest) {
		return fmt.Errorf("bring the store to version %d: %w", schemaVersion, err)
	}
	return b.settle()
}

var errNewest = errors.New("it has the newest version")

// upgrade gives a store the newest version, or returns errNewest if it has it.
func (b *batcher) upgrade() error {
	b.db.NoSync = false
	defer func() { b.db.NoSync = true }()
	return b.db.Update(func(btx *bolt.Tx) error {
		t := &tx{Tx: btx, summer: b.summer}
		meta := t.Bucket(bucketMeta)
		if bytes.Equal(meta.Get(keyVersion), key8(schemaVersion)) {
			return errNewest
		}
		err := errors.Join(t.put(bucketMeta, keyVersion, key8(schemaVersion)), t.put(bucketMeta, keySum, metaSum(meta)))
		btx.OnCommit(func() { b.txid, b.summer = b.txid+1, t.summer })
		return err
	})
}

// settle notes in the file that the last transaction is durable. What is wrong with it from then on is damage, and no commit that
// was cut off. It writes a second stamp, so that half of one leaves the first.
func (b *batcher) settle() error {
	b.committing.Lock()
	defer b.committing.Unlock()
	if !b.unsettled {
		return nil
	}
	b.unsettled = false
	return errors.Join(b.stamps.write(settledAt, b.txid, b.summer.sum), b.sync())
}

// close closes the batcher's own files. It may be called again.
func (b *batcher) close() error {
	return errors.Join(b.room.close(), b.stamps.close())
}
