package differ

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/google/uuid"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// undoTime is how long each of the two steps may take that undo a call that failed, whose context may have ended. With leaveTime, they stay
// within what a stop of the daemon gives calls that it has cancelled.
const undoTime = 3 * time.Second

// A writeFunc writes the tar stream of a layer.
type writeFunc func(context.Context, io.Writer) error

// ingest puts the layer that write writes into the content store.
func (d *Differ) ingest(ctx context.Context, config diff.Config, write writeFunc) (_ ocispec.Descriptor, err error) {
	ctx, unlease, err := d.lease(ctx)
	if err != nil {
		return ocispec.Descriptor{}, storeError(err)
	}
	own := config.Reference == ""
	if own {
		config.Reference = "lamina-diff-" + uuid.NewString()
	}
	defer func() {
		if err == nil {
			return
		}
		if ended := ctx.Err(); ended != nil && !errors.Is(err, ended) {
			err = errors.Join(ended, err)
		}
		if own {
			d.undo(ctx, "abort the ingest", func(ctx context.Context) error { return d.abort(ctx, config.Reference) })
		}
		d.undo(ctx, "delete the lease", unlease)
	}()
	// A content store of another process holds a stream open until its context ends.
	writing, cancel := context.WithCancel(ctx)
	defer cancel()
	cw, err := d.store.Writer(writing, content.WithRef(config.Reference),
		content.WithDescriptor(ocispec.Descriptor{MediaType: config.MediaType}))
	if err != nil {
		return ocispec.Descriptor{}, storeError(fmt.Errorf("open the ingest: %w", err))
	}
	desc, err := d.fill(writing, cw, config, own, write)
	if err != nil {
		_ = cw.Close() // nothing of it is kept
	}
	return desc, err
}

// undo runs a step that undoes what a failed call began. It may fail in turn: then containerd collects what is left.
func (d *Differ) undo(ctx context.Context, what string, step func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	if err := step(ctx); err != nil && !errdefs.IsNotFound(err) {
		log.G(ctx).WithError(err).Warnf("cannot %s of a layer that was not written", what)
	}
}

// abortPause is how long containerd is left alone between two tries to abort an ingest.
const abortPause = 20 * time.Millisecond

// abort aborts an ingest whose writer has been closed. A content store of another process closes it when it comes to it, and cannot delete the
// files of one that it is just writing to: the error has no class, and the next try finds it closed.
func (d *Differ) abort(ctx context.Context, ref string) error {
	tick := time.NewTicker(abortPause)
	defer tick.Stop()
	for {
		err := d.store.Abort(ctx, ref)
		if err == nil || errdefs.IsNotFound(err) || errdefs.IsUnavailable(err) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return err
		}
	}
}

// fill writes the layer to cw and commits it. A reference of the caller may have content, from a call that was cut off.
func (d *Differ) fill(ctx context.Context, cw content.Writer, config diff.Config, own bool, write writeFunc) (ocispec.Descriptor, error) {
	if !own {
		if err := cw.Truncate(0); err != nil {
			return ocispec.Descriptor{}, storeError(fmt.Errorf("begin the ingest anew: %w", err))
		}
	}
	size, uncompressed, err := send(ctx, cw, config, write)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	dgst := cw.Digest()
	config.Labels[labels.LabelUncompressed] = uncompressed.String()
	desc := ocispec.Descriptor{MediaType: config.MediaType, Digest: dgst, Size: size}
	// The commit syncs the blob. A kill before it leaves an ingest, after it a blob with a lease.
	err = cw.Commit(ctx, size, dgst, content.WithLabels(config.Labels))
	if errdefs.IsAlreadyExists(err) {
		return desc, d.label(ctx, dgst, uncompressed)
	}
	if errdefs.IsNotFound(err) {
		err = fmt.Errorf("its lease has expired, or somebody deleted it: %w", err)
	}
	if err != nil {
		return ocispec.Descriptor{}, storeError(fmt.Errorf("commit the layer: %w", err))
	}
	return desc, nil
}

// send writes a layer to cw, compressed, and returns its size there and the digest of what was compressed.
func send(ctx context.Context, cw io.Writer, config diff.Config, write writeFunc) (size int64, uncompressed digest.Digest, err error) {
	out := newSender(cw)
	defer out.abort() // does nothing after a close
	z, err := newCompressor(out, config)
	if err != nil {
		return 0, "", err
	}
	digester := digest.SHA256.Digester()
	if err := write(ctx, io.MultiWriter(z, digester.Hash())); err != nil {
		out.fail(err)
		z.abort()
		return 0, "", err
	}
	if err := z.Close(); err != nil {
		out.fail(err)
		z.abort()
		return 0, "", fmt.Errorf("compress the layer: %w", err)
	}
	if err := out.close(); err != nil {
		return 0, "", err
	}
	return out.size, digester.Digest(), nil
}

// label sees to it that a blob that was there has the label of its uncompressed digest.
func (d *Differ) label(ctx context.Context, dgst, uncompressed digest.Digest) error {
	info, err := d.store.Info(ctx, dgst)
	if err != nil {
		return fmt.Errorf("look at the layer: %w", err)
	}
	if info.Labels[labels.LabelUncompressed] != "" {
		return nil
	}
	if info.Labels == nil {
		info.Labels = make(map[string]string)
	}
	info.Labels[labels.LabelUncompressed] = uncompressed.String()
	if _, err := d.store.Update(ctx, info, "labels."+labels.LabelUncompressed); err != nil {
		return fmt.Errorf("label the layer: %w", err)
	}
	return nil
}

// storeError gives an error of the content store that has none its class. Of what its disk says containerd's content service passes on the
// text of the errno alone, and its client says EOF of a stream that was cut off.
func storeError(err error) error {
	text := fmt.Sprint(err)
	for _, errno := range []unix.Errno{unix.ENOSPC, unix.EDQUOT} {
		if errors.Is(err, errno) || strings.Contains(text, errno.Error()) {
			return fmt.Errorf("containerd's content store is full: %w: %w", errdefs.ErrResourceExhausted, err)
		}
	}
	cutOff := errors.Is(err, io.EOF) || errdefs.IsUnknown(err) && strings.HasSuffix(text, fmt.Sprint(": ", io.EOF))
	locked := strings.Contains(text, " locked for ") // a reference that somebody else writes to (plugins/content/local/locks.go)
	if cutOff || errdefs.IsUnavailable(err) && !locked {
		return fmt.Errorf("containerd's content store went away: %w: %w", errdefs.ErrUnavailable, err)
	}
	return err
}
