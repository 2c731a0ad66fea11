package doctor

import (
	"context"
	"time"

	"github.com/lamina-snapshotter/lamina/dmthin"
	"github.com/lamina-snapshotter/lamina/metadata"
)

// reapWait is how long a daemon may take to empty the trash before what is in it is called stuck. One that is at work for
// longer has much to delete, and nothing is said of it.
const reapWait = 5 * time.Second

// trash reports what was removed and is still there: without a daemon all of it as one, beside a daemon what it tried to
// delete and could not.
func (e *examination) trash(ctx context.Context) error {
	if len(e.first.trash) == 0 {
		return nil
	}
	if e.Live == nil {
		e.found(finding(TrashLeft, "the trash", "%d contents are still to be deleted", len(e.first.trash)))
		return nil
	}
	bounded, cancel := context.WithTimeout(ctx, reapWait)
	defer cancel()
	reason := e.Live.Reaped(bounded)
	if reason == nil || bounded.Err() != nil {
		return ctx.Err()
	}
	now, err := readContents(ctx, e.Store)
	if err != nil {
		return err
	}
	for id, link := range e.first.trash {
		if _, ok := now.trash[id]; ok {
			f := finding(TrashStuck, e.contentName(link), "it cannot be deleted: %v", reason)
			f.Holders = e.holders(ctx, link)
			e.found(f)
		}
	}
	return nil
}

func (e *examination) contentName(link metadata.Link) string {
	if link.Placement.Medium == metadata.Directory {
		return e.directory(link.Content())
	}
	return volumeName(link.Content())
}

// holders names who uses a content. Who cannot be found is left out: they are no more than a help.
func (e *examination) holders(ctx context.Context, link metadata.Link) []string {
	switch {
	case link.Placement.Medium == metadata.Directory && e.HoldersOfDirectory != nil:
		holders, _ := e.HoldersOfDirectory(ctx, e.directory(link.Content()))
		return holders
	case link.Placement.Medium == metadata.Volume && e.HoldersOfDevice != nil && e.Live != nil:
		device := dmthin.SurveyedDevice{Role: dmthin.VolumeDevice, Volume: link.Placement.Device}
		if d, ok, err := e.Live.SurveyDevice(ctx, device); err == nil && ok {
			holders, _ := e.HoldersOfDevice(ctx, d.Major, d.Minor)
			return holders
		}
	}
	return nil
}
