package lamina

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/lamina-snapshotter/lamina/admin"
	"github.com/lamina-snapshotter/lamina/dmthin"
	"github.com/lamina-snapshotter/lamina/internal/holders"
	"github.com/lamina-snapshotter/lamina/metadata"
	"github.com/lamina-snapshotter/lamina/snapshotter"
)

// Snapshots calls each with all snapshots, below each base what is made upon it.
func (f *facts) Snapshots(ctx context.Context, each func(admin.Snapshot) error) error {
	return f.store.WalkTrees(ctx, func(sn metadata.Snapshot) error { return each(describeSnapshot(sn)) })
}

func describeSnapshot(sn metadata.Snapshot) admin.Snapshot {
	s := admin.Snapshot{
		ID: uint64(sn.ID), Name: sn.Name, Key: sn.Key, Kind: metadata.KindName(sn.Kind), Parent: sn.Parent,
		Created: sn.Created, Updated: sn.Updated, Labels: sn.Labels,
		Content: admin.Content{
			Backend: backendName(sn.Placement.Medium), Whole: sn.Placement.Whole, Device: sn.Placement.Device,
			Limit: sn.Placement.Size, Project: sn.Placement.Project,
		},
	}
	if sn.Usage != nil {
		s.Usage = &admin.Usage{Bytes: uint64(sn.Usage.Size), Inodes: uint64(sn.Usage.Inodes)}
	}
	return s
}

// Inspect tells all of one snapshot. What cannot be told within a moment, as a disk hangs, is named in it.
func (f *facts) Inspect(ctx context.Context, name, key string) (admin.Inspection, error) {
	sn, parents, children, err := f.store.Family(name, key)
	if errors.Is(err, metadata.ErrNotExist) || name == metadata.Templates {
		return admin.Inspection{}, fmt.Errorf("snapshot %q of %q: %w", key, name, errdefs.ErrNotFound)
	}
	if err != nil {
		return admin.Inspection{}, err
	}
	i := admin.Inspection{Snapshot: describeSnapshot(sn), Chain: []admin.Snapshot{}}
	for _, p := range parents {
		i.Chain = append(i.Chain, describeSnapshot(p))
	}
	for _, c := range children {
		i.Children = append(i.Children, c.Key)
	}
	note := func(what string, err error) {
		if err != nil {
			i.Unknown = append(i.Unknown, fmt.Sprintf("%s: %v", what, err))
		}
	}
	i.Mounts, err = f.mounts(ctx, sn)
	note("mounts", err)
	switch sn.Placement.Medium {
	case metadata.Directory:
		content := filepath.Join(f.config.mediumRoot(metadata.Directory), strconv.FormatUint(uint64(sn.ID), 10))
		i.Path = filepath.Join(content, "fs")
		found, err := unhung(ctx, &f.looks, content, func(ctx context.Context) ([]holders.Holder, error) { return holders.OfDirectory(ctx, content) })
		i.Holders = texts(found)
		note("holders", err)
	case metadata.Volume:
		err := f.device(ctx, sn, &i)
		note("device and holders", err)
	default:
	}
	return i, ctx.Err()
}

// device sets the node of a volume that has one, and who uses that.
func (f *facts) device(ctx context.Context, sn metadata.Snapshot, i *admin.Inspection) error {
	type device struct {
		dmthin.SurveyedDevice
		found   bool
		holders []holders.Holder
	}
	d, err := unhung(ctx, &f.looks, fmt.Sprint("device ", sn.ID), func(ctx context.Context) (d device, err error) {
		if d.SurveyedDevice, d.found, err = dmthin.FindVolume(f.store.UUID(), sn.Placement.Device); err != nil || !d.found {
			return d, err
		}
		d.holders, err = holders.OfDevice(ctx, d.Major, d.Minor)
		return d, err
	})
	if err == nil && d.found {
		i.Path, i.Holders = d.Node(), texts(d.holders)
	}
	return err
}

// errNotMountable is told of a snapshot that a call of Mounts would get ready first.
var errNotMountable = errors.New("none as it is: its device or directory is made when containerd asks for them")

// mounts are those that containerd would get of a daemon now, where there is all that they need: nothing is made or started.
func (f *facts) mounts(ctx context.Context, sn metadata.Snapshot) ([]admin.Mount, error) {
	if f.host == nil || sn.Kind == snapshots.KindCommitted {
		return nil, nil
	}
	of, ok := f.host.snapshotters[sn.Name].(*snapshotter.Snapshotter)
	if !ok {
		return nil, nil
	}
	mounts, err := unhung(ctx, &f.looks, fmt.Sprint("mounts ", sn.ID), func(ctx context.Context) ([]mount.Mount, error) {
		return of.Describe(ctx, sn.Key)
	})
	if err == nil && mounts == nil {
		err = errNotMountable
	}
	list := make([]admin.Mount, len(mounts))
	for i, m := range mounts {
		list[i] = admin.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options}
	}
	return list, err
}

// Snapshots calls each with all snapshots, below each base what is made upon it.
func (h *Host) Snapshots(ctx context.Context, each func(admin.Snapshot) error) error {
	return h.facts.Snapshots(ctx, each)
}

// Inspect tells all of one snapshot.
func (h *Host) Inspect(ctx context.Context, name, key string) (admin.Inspection, error) {
	return h.facts.Inspect(ctx, name, key)
}
