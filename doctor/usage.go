package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/docker/go-units"

	"github.com/lamina-snapshotter/lamina/dmthin"
	"github.com/lamina-snapshotter/lamina/metadata"
)

// A Usage is how much of the pool the volume of a snapshot has, in bytes. What is Exclusive its removal gives back.
type Usage struct {
	ID          metadata.ID `json:"id,omitempty"` // 0 if neither a record nor the trash names the volume
	Snapshotter string      `json:"snapshotter,omitempty"`
	Key         string      `json:"key,omitempty"` // "" of what is in the trash
	Volume      uint32      `json:"volume"`
	Mapped      uint64      `json:"mapped"`
	Exclusive   uint64      `json:"exclusive"`
	Shared      uint64      `json:"shared"`
}

// String returns the usage as a line.
func (u Usage) String() string {
	whose := fmt.Sprintf("%s, %s", u.Snapshotter, u.Key)
	switch {
	case u.ID == 0:
		whose = "of no snapshot"
	case u.Key == "":
		whose = "removed"
	}
	size := func(n uint64) string { return units.BytesSize(float64(n)) }
	return fmt.Sprintf("%s (%s): %s mapped, %s exclusive, %s shared", volumeName(uint64(u.Volume)), whose, size(u.Mapped), size(u.Exclusive), size(u.Shared))
}

// Usages calls each with what every volume has of the pool, by ascending number. It changes nothing, and ends within [Limit].
func Usages(ctx context.Context, s Subject, each func(Usage)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, Limit, errLimit)
	defer cancel()
	now, err := readContents(ctx, s.Store)
	if err != nil {
		return err
	}
	if !s.Volumes && len(now.volumes) == 0 {
		return nil
	}
	volumes, err := unhung(ctx, func() ([]dmthin.VolumeUsage, error) {
		if s.Live != nil && s.Live.Broken(metadata.Volume) == nil {
			return s.Live.VolumesUsage(ctx)
		}
		return dmthin.LookAtUsage(ctx, s.Thin)
	})
	if errors.Is(err, fs.ErrNotExist) && len(now.volumes) == 0 {
		return nil // there is no pool yet
	}
	if err != nil {
		return fmt.Errorf("the volumes: %w", err)
	}
	e := &examination{Subject: s}
	for _, link := range now.trash {
		if link.Placement.Medium == metadata.Volume {
			now.volumes[link.Content()] = link
		}
	}
	for _, v := range volumes {
		u := Usage{Volume: v.ID, Mapped: v.Mapped, Exclusive: v.Exclusive, Shared: v.Mapped - v.Exclusive}
		if link, ok := now.volumes[uint64(v.ID)]; ok {
			f := e.of(Finding{}, link.ID)
			u.ID, u.Snapshotter, u.Key = link.ID, f.Snapshotter, f.Key
		}
		each(u)
	}
	return nil
}
