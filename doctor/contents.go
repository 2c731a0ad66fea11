package doctor

import (
	"context"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/lamina-snapshotter/lamina/metadata"
)

// contents are what the store says that there should be, by the numbers that the backends know contents by.
type contents struct {
	directories map[uint64]metadata.Link
	volumes     map[uint64]metadata.Link
	trash       map[metadata.ID]metadata.Link
	trashed     map[metadata.Medium]map[uint64]bool
	viewed      map[metadata.ID]bool // a view shows it
	children    map[metadata.ID][]metadata.Link
}

// readContents reads the trash last: what moves into it meanwhile is then known twice, and never not at all.
func readContents(ctx context.Context, store *metadata.Store) (c contents, err error) {
	c = contents{
		directories: map[uint64]metadata.Link{}, volumes: map[uint64]metadata.Link{},
		trash: map[metadata.ID]metadata.Link{}, viewed: map[metadata.ID]bool{}, children: map[metadata.ID][]metadata.Link{},
		trashed: map[metadata.Medium]map[uint64]bool{metadata.Directory: {}, metadata.Volume: {}},
	}
	for medium, into := range map[metadata.Medium]map[uint64]metadata.Link{
		metadata.Directory: c.directories, metadata.Volume: c.volumes, metadata.NoMedium: nil,
	} {
		links, err := store.Contents(medium)
		if err != nil {
			return c, err
		}
		for _, link := range links {
			if into != nil {
				into[link.Content()] = link
			}
			if link.Kind == snapshots.KindView {
				c.viewed[link.ParentID] = true
			}
			c.children[link.ParentID] = append(c.children[link.ParentID], link)
		}
	}
	trash, err := store.Trash(ctx)
	if err != nil {
		return c, err
	}
	for _, link := range trash {
		c.trash[link.ID] = link
		if numbers := c.trashed[link.Placement.Medium]; numbers != nil {
			numbers[link.Content()] = true
		}
	}
	return c, nil
}

// both calls fn with what c and later have in common, of the contents of one medium.
func both(c, later map[uint64]metadata.Link, fn func(n uint64, link metadata.Link)) {
	for n, link := range c {
		if now, ok := later[n]; ok && now.ID == link.ID {
			fn(n, now)
		}
	}
}

// needed reports whether a snapshot's content is used as long as the snapshot is there: it is active, or a view shows it.
func (c contents) needed(link metadata.Link) bool {
	return link.Kind == snapshots.KindActive || c.viewed[link.ID]
}
