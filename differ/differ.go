package differ

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/epoch"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// Change is one entry of a tree that is not as it is in another, as a Source tells of it. Its fields are those of a snapshotter.Change.
type Change = struct {
	Path   string
	Stat   *unix.Stat_t
	Opaque bool
	Dir    int
}

// A Source tells what changed.
type Source interface {
	// Changes calls fn for each entry in which the tree that the mounts upper show differs from the one that lower shows, in the
	// order of a layer, as a snapshotter.Differ does. Mounts that it does not know are errdefs.ErrNotImplemented, before fn is called for
	// the first time.
	Changes(ctx context.Context, lower, upper []mount.Mount, fn func(Change) error) error
}

// A Differ makes layers of what a Source tells. Its methods may be called from several goroutines at once.
type Differ struct {
	source Source
	store  content.Store
	leases leases.Manager
}

var _ diff.Comparer = (*Differ)(nil)

// New returns a Differ that writes to a content store. With a lease manager, each layer that comes without a lease of its caller gets one, as
// nothing refers to it yet; nil is for a store in the same process, where the caller's lease always arrives.
func New(source Source, store content.Store, manager leases.Manager) *Differ {
	return &Differ{source: source, store: store, leases: manager}
}

// Compare writes the layer that makes the tree of lower into that of upper, and returns its descriptor, of which the media type, the
// size and the digest are set. The context carries containerd's namespace.
//
// Its errors have these classes of errdefs: ErrNotImplemented for mounts and media types that are not served here, before anything is
// written or asked; ErrAborted for a file that changed or vanished while it was read; ErrInvalidArgument for a name that a layer cannot
// have; ErrNotFound for a snapshot that was removed, or a lease; ErrResourceExhausted for a full content store; ErrUnavailable for one that
// does not answer. A context that ends is its own error, soon, whatever the disks do.
func (d *Differ) Compare(ctx context.Context, lower, upper []mount.Mount, opts ...diff.Opt) (ocispec.Descriptor, error) {
	config, err := parse(ctx, opts)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	w := d.walk(ctx, lower, upper, config.SourceDateEpoch)
	defer w.stop(ctx)
	// Until the source has said that the mounts are its own, nothing is asked of the content store.
	if err := w.begun(ctx); err != nil {
		return ocispec.Descriptor{}, err
	}
	return d.ingest(ctx, config, w.writeTar)
}

// parse returns what the options say, with defaults for the rest.
func parse(ctx context.Context, opts []diff.Opt) (config diff.Config, err error) {
	for _, opt := range opts {
		if err := opt(&config); err != nil {
			return config, err
		}
	}
	if config.SourceDateEpoch == nil {
		config.SourceDateEpoch = epoch.FromContext(ctx)
	}
	config.Labels = maps.Clone(config.Labels) // the label of the uncompressed digest is added
	if config.Labels == nil {
		config.Labels = map[string]string{}
	}
	if config.Compressor != nil {
		if config.MediaType == "" {
			return config, fmt.Errorf("a compressor without a media type: %w", errdefs.ErrInvalidArgument)
		}
		return config, nil
	}
	if config.MediaType == "" {
		config.MediaType = ocispec.MediaTypeImageLayerGzip
	}
	if !slices.Contains(mediaTypes, config.MediaType) {
		return config, fmt.Errorf("layers of media type %q are not written here: %w", config.MediaType, errdefs.ErrNotImplemented)
	}
	return config, nil
}

// A walk is a Source at work. It ends with stop.
type walk struct {
	entries chan entry
	cancel  context.CancelFunc
	first   *entry
	err     error // the Source's, once entries is closed
}

// queued is how many entries may lie between the walk and the tar stream.
const queued = 64

func (d *Differ) walk(ctx context.Context, lower, upper []mount.Mount, bound *time.Time) *walk {
	ctx, cancel := context.WithCancel(ctx)
	w := &walk{entries: make(chan entry, queued), cancel: cancel}
	l := newLister(w.entries, bound)
	go func() {
		defer close(w.entries)
		w.err = changed(d.source.Changes(ctx, lower, upper, func(c Change) error { return l.add(ctx, c) }))
	}()
	return w
}

// changed gives an error for something that is gone its class. A snapshot that is gone as a whole has one, and to try again does not bring
// it back.
func changed(err error) error {
	if errors.Is(err, fs.ErrNotExist) && !errdefs.IsNotFound(err) {
		return fmt.Errorf("%w: something vanished while it was read: pause the container, or try again: %w", errdefs.ErrAborted, err)
	}
	return err
}

// begun waits for the first entry, or for the end of the walk.
func (w *walk) begun(ctx context.Context) error {
	select {
	case first, ok := <-w.entries:
		if !ok {
			return w.err
		}
		w.first = &first
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// writeTar writes the layer to out.
func (w *walk) writeTar(ctx context.Context, out io.Writer) error {
	l := newLayer(out)
	if w.first != nil {
		if err := l.write(*w.first); err != nil {
			return err
		}
	}
	for {
		select {
		case e, ok := <-w.entries:
			if !ok {
				if err := errors.Join(w.err, ctx.Err()); err != nil {
					return err
				}
				return l.close()
			}
			if err := l.write(e); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// leaveTime is how long the walk of a call that failed may take to end, with its mounts and descriptors.
const leaveTime = 2 * time.Second

// stop ends the walk and waits for its end, though not for a disk that does not answer: the walk ends when that does. Till then it has
// what is its own, and nobody takes what it sends.
func (w *walk) stop(ctx context.Context) {
	w.cancel()
	timer := time.NewTimer(leaveTime)
	defer timer.Stop()
	for {
		select {
		case _, ok := <-w.entries:
			if !ok {
				return
			}
		case <-timer.C:
			log.G(ctx).Warn("a comparison has ended, and what reads for it has not yet")
			return
		}
	}
}
