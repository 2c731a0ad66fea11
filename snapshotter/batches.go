package snapshotter

import (
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/lamina-snapshotter/lamina/metadata"
)

// batches have contents settled, several at once: a device that hangs holds up one worker for as long as that is bounded.
type batches struct {
	settle  func(metadata.ID)
	workers errgroup.Group
	earlier <-chan struct{} // closed when all batches so far have been worked on
}

func newBatches(settle func(metadata.ID)) *batches {
	none := make(chan struct{})
	close(none)
	b := &batches{settle: settle, earlier: none}
	b.workers.SetLimit(settleWorkers)
	return b
}

// run has a batch settled, and then calls done: after the earlier batches, and when those of this one have ended.
func (b *batches) run(ids []metadata.ID, done func()) {
	var batch sync.WaitGroup
	for _, id := range ids {
		batch.Add(1)
		b.workers.Go(func() error {
			defer batch.Done()
			b.settle(id)
			return nil
		})
	}
	earlier, now := b.earlier, make(chan struct{})
	b.earlier = now
	go func() {
		batch.Wait()
		<-earlier
		done()
		close(now)
	}()
}

// wait returns when all have ended.
func (b *batches) wait() { <-b.earlier }
