package lamina

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lamina-snapshotter/lamina/metadata"
)

const (
	// readersWait bounds how long a start waits for who reads the store. With the pause after an exit systemd does not come to the
	// end of its tries then, however long somebody reads (StartLimitBurst in packaging/lamina.service).
	readersWait = 10 * time.Second
	// readersPause is after what time it tries again.
	readersPause = 20 * time.Millisecond
)

// openStore opens the store to be written. It waits for those who read it, as a command does beside a stopped daemon, and for who is
// just making it, up to wait; that somebody else has it to write is metadata.ErrLocked at once.
func openStore(ctx context.Context, path string, wait time.Duration) (*metadata.Store, error) {
	deadline := time.Now().Add(wait)
	for {
		store, err := metadata.Open(path, metadata.Options{})
		if !errors.Is(err, metadata.ErrLocked) || metadata.Locked(path) != nil {
			return store, err
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("%w, still after %s", err, wait)
		}
		select {
		case <-time.After(readersPause):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
