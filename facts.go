package lamina

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/lamina-snapshotter/lamina/dmthin"
	"github.com/lamina-snapshotter/lamina/internal/space"
	"github.com/lamina-snapshotter/lamina/metadata"
)

// factWait bounds how long an answer waits for one thing that may hang in the kernel.
const factWait = 2 * time.Second

var errFactWait = fmt.Errorf("it has not answered within %s", factWait)

// facts answer what an operator asks of a root, be it a daemon's or nobody's.
type facts struct {
	config Config
	store  *metadata.Store
	host   *Host // nil of a root that no daemon has

	disks [metadata.Volume + 1]latest[space.Disk] // by medium
	pool  latest[dmthin.Status]                   // of one that no backend has open
	looks looks
}

// A Stopped is a root that no daemon has, opened to be read. While it is open no daemon can start on the root: it is to be closed
// soon. Its Space closes it.
type Stopped struct{ *facts }

// OpenStopped opens a root that no process has open, to answer for it from its files. It returns metadata.ErrLocked if one has.
func OpenStopped(c Config) (Stopped, error) {
	if err := c.Validate(); err != nil {
		return Stopped{}, err
	}
	store, err := metadata.Open(c.storePath(), metadata.Options{ReadOnly: true})
	if err != nil {
		return Stopped{}, fmt.Errorf("root: %w", err)
	}
	return Stopped{&facts{config: c, store: store}}, nil
}

// Close gives the root back.
func (s Stopped) Close() error { return s.store.Close() }

// backendName is what an operator knows a medium by.
func backendName(medium metadata.Medium) string {
	switch medium {
	case metadata.Directory:
		return BackendUnion
	case metadata.Volume:
		return BackendThin
	default:
		return ""
	}
}

// mediumRoot is where contents of a medium lie.
func (c Config) mediumRoot(medium metadata.Medium) string {
	return c.Root + string(os.PathSeparator) + backendName(medium)
}

// serves reports whether a snapshotter has new contents of a medium.
func (c Config) serves(medium metadata.Medium) bool {
	for name := range c.Snapshotters {
		if c.medium(name) == medium {
			return true
		}
	}
	return false
}

// bounded returns a context for one thing that may hang.
func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, factWait, errFactWait)
}

// left returns what has failed as text, "" if nothing has.
func left(err error) string {
	if err == nil {
		return ""
	}
	return fmt.Sprint(err)
}

// ignoring returns err unless it is one of these.
func ignoring(err error, these ...error) error {
	for _, e := range these {
		if errors.Is(err, e) {
			return nil
		}
	}
	return err
}
