package doctor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/lamina-snapshotter/lamina/dmthin"
	"github.com/lamina-snapshotter/lamina/metadata"
)

const (
	// reapWait is how long a daemon may take to delete what is in the trash before what is left of it is reported.
	reapWait = 5 * time.Second

	// maxAsked is for how many contents of the trash it is asked who uses them, and askWait for how long at most: it is a
	// look at all processes for each.
	maxAsked = 16
	askWait  = 5 * time.Second
)

// trash reports what was removed and is still there, with who uses it: without a daemon all of it as one, beside a daemon
// what it could not delete, or not yet.
func (e *examination) trash(ctx context.Context) error {
	if e.Live != nil {
		return errors.Join(e.trashOf(ctx, metadata.Directory), e.trashOf(ctx, metadata.Volume))
	}
	if len(e.first.trash) == 0 {
		return nil
	}
	f := finding(TrashLeft, "the trash", "%d contents are still to be deleted", len(e.first.trash))
	for i, link := range ordered(e.first.trash) {
		if i >= maxAsked {
			break
		}
		holders, err := e.holders(ctx, link)
		for _, holder := range withUnknown(holders, err) {
			f.Holders = append(f.Holders, e.contentName(link)+": "+holder)
		}
	}
	e.found(f)
	return nil
}

// trashOf reports what a daemon still has in the trash of one medium once it has had the time to delete it. The daemon takes
// what somebody uses for no failure, so who that is must be asked for each content.
func (e *examination) trashOf(ctx context.Context, medium metadata.Medium) error {
	inTrash := func(c contents) (links []metadata.Link) {
		return keep(ordered(c.trash), func(l metadata.Link) bool { return l.Placement.Medium == medium })
	}
	if len(inTrash(e.first)) == 0 || e.Live.Broken(medium) != nil { // what keeps the backend from its work is a finding
		return nil
	}
	bounded, cancel := context.WithTimeout(ctx, reapWait)
	defer cancel()
	reason := e.Live.Reaped(bounded, medium)
	slow := bounded.Err() != nil
	if err := ctx.Err(); err != nil {
		return err
	}
	now, err := readContents(ctx, e.Store)
	if err != nil {
		return err
	}
	left := keep(inTrash(e.first), func(l metadata.Link) bool { _, ok := now.trash[l.ID]; return ok })
	for i, link := range left {
		var holders []string
		var unknown error
		if i < maxAsked {
			holders, unknown = e.holders(ctx, link)
		}
		f := e.left(link, holders, reason, slow)
		f.Holders = withUnknown(holders, unknown)
		e.found(f)
	}
	return ctx.Err()
}

// left returns the finding of a content that a daemon has not deleted: as it is in use, as its deletion takes long, or for
// some reason.
func (e *examination) left(link metadata.Link, holders []string, reason error, slow bool) Finding {
	f := finding(TrashWaiting, e.contentName(link), "somebody uses it")
	switch {
	case len(holders) > 0 || reason == nil:
	case slow:
		f = finding(TrashWaiting, e.contentName(link), "it has not been deleted within %s", reapWait)
	default:
		f = finding(TrashStuck, e.contentName(link), "it cannot be deleted: %v", reason)
	}
	f.ID = link.ID
	return f
}

// withUnknown says in the holders' place that they cannot be told: they are no more than a help.
func withUnknown(holders []string, err error) []string {
	if err != nil {
		return append(holders, fmt.Sprintf("(who uses it cannot be told: %v)", err))
	}
	return holders
}

// ordered returns the links by ascending id.
func ordered(links map[metadata.ID]metadata.Link) (list []metadata.Link) {
	for _, id := range slices.Sorted(maps.Keys(links)) {
		list = append(list, links[id])
	}
	return list
}

func (e *examination) contentName(link metadata.Link) string {
	if link.Placement.Medium == metadata.Directory {
		return e.directory(link.Content())
	}
	return volumeName(link.Content())
}

// holders names who uses a content.
func (e *examination) holders(ctx context.Context, link metadata.Link) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	return unhung(ctx, func() ([]string, error) { return e.ask(ctx, link) })
}

func (e *examination) ask(ctx context.Context, link metadata.Link) ([]string, error) {
	switch {
	case link.Placement.Medium == metadata.Directory && e.HoldersOfDirectory != nil:
		return e.HoldersOfDirectory(ctx, e.directory(link.Content()))
	case link.Placement.Medium == metadata.Volume && e.HoldersOfDevice != nil:
		d, ok, err := e.deviceOf(ctx, link)
		if err == nil && ok {
			return e.HoldersOfDevice(ctx, d.Major, d.Minor)
		}
		return nil, err
	}
	return nil, nil
}

// deviceOf returns the device of a volume, if it has one.
func (e *examination) deviceOf(ctx context.Context, link metadata.Link) (dmthin.SurveyedDevice, bool, error) {
	if e.Live != nil {
		return e.Live.SurveyDevice(ctx, dmthin.SurveyedDevice{Role: dmthin.VolumeDevice, Volume: link.Placement.Device})
	}
	for _, d := range e.devicesSeen {
		if d.Role == dmthin.VolumeDevice && d.Volume == link.Placement.Device {
			return d, true, nil
		}
	}
	return dmthin.SurveyedDevice{}, false, nil
}
