package dmthin

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// sizeUnit is what the size of a volume is a multiple of, in bytes: a block of its file system.
const sizeUnit = 4096

// Template returns the name of the template that a base with these labels is a copy of: one per file system, size, and
// generation of the options of mkfs.
func (b *Backend) Template(labels map[string]string) (string, error) {
	size, err := b.config.sizeOf(labels)
	if err != nil {
		return "", err
	}
	if err := checkVolumeSize(b.config.FS, size); err != nil {
		return "", fmt.Errorf("label %s: %w: %w", snapshots.LabelSnapshotMaxSize, errdefs.ErrInvalidArgument, err)
	}
	return fmt.Sprintf("%s/%d/%d", b.config.FS, size, formatVersion), nil
}

// sizeOf returns the size in bytes that a volume with these labels should have.
func (c Config) sizeOf(labels map[string]string) (uint64, error) {
	text, ok := labels[snapshots.LabelSnapshotMaxSize]
	if !ok {
		return uint64(c.VolumeSize) / sizeUnit * sizeUnit, nil
	}
	size, err := strconv.ParseInt(text, 10, 64)
	if err != nil || size <= 0 || size > maxVolumeExt4 {
		return 0, fmt.Errorf("label %s = %q: %w: it is a number of bytes, up to %d",
			snapshots.LabelSnapshotMaxSize, text, errdefs.ErrInvalidArgument, uint64(maxVolumeExt4))
	}
	return uint64(size) / sizeUnit * sizeUnit, nil
}

// MakeTemplate makes volume id an empty file system, as the name of a template says.
func (b *Backend) MakeTemplate(ctx context.Context, id uint64, name string) (size uint64, err error) {
	volume, err := b.begin(ctx, id)
	if err != nil {
		return 0, err
	}
	kind, size, err := parseTemplate(name)
	if err != nil {
		return 0, err
	}
	if err := b.admit(ctx); err != nil {
		return 0, err
	}
	b.forget(id)
	if err := b.pool.Create(ctx, volume); err != nil {
		return 0, err
	}
	if err := b.pool.Use(ctx, volume, size, false, func(device string) error {
		return format(ctx, device, kind)
	}); err != nil {
		return 0, err
	}
	return size, b.freeze(ctx, Content{ID: id, Size: size})
}

func parseTemplate(name string) (kind filesystem, size uint64, err error) {
	fields := strings.Split(name, "/")
	if len(fields) != 3 {
		return nil, 0, fmt.Errorf("%q is not the name of a template", name)
	}
	if kind, err = fsByName(fields[0]); err != nil {
		return nil, 0, err
	}
	size, err = strconv.ParseUint(fields[1], 10, 64)
	return kind, size, err
}
