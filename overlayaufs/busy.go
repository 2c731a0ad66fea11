package overlayaufs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/log"

	"github.com/lamina-snapshotter/lamina/internal/holders"
)

// Busy returns those of the contents that a mount in any mount namespace uses: as a layer of an overlay, as what a bind
// mount shows, or below a mount point. It reads the mounts of each namespace once.
//
// Where the mounts of some processes may not be read, theirs do not count, which is logged once. What no process's mounts
// show does not count either; package holders says what that is.
func (b *Backend) Busy(ctx context.Context, contents []Content) ([]uint64, error) {
	mounts, err := b.users(ctx, contents)
	if err != nil {
		return nil, err
	}
	var busy []uint64
	for _, c := range contents {
		if len(mounts[c.ID]) > 0 {
			busy = append(busy, c.ID)
		}
	}
	return busy, nil
}

// Users says who uses a content, in words for the log.
func (b *Backend) Users(ctx context.Context, c Content) (string, error) {
	mounts, err := b.users(ctx, []Content{c})
	if err != nil {
		return "", err
	}
	var users []holders.Holder
	for _, m := range mounts[c.ID] {
		users = append(users, m.Holder())
	}
	return holders.Sentence(users), nil
}

// WaitIdle returns when one of the contents is used no more.
func (b *Backend) WaitIdle(ctx context.Context, contents []Content) error {
	for {
		mounts, err := b.users(ctx, contents)
		if err != nil {
			return err
		}
		var all []holders.Mount
		for _, c := range contents {
			if len(mounts[c.ID]) == 0 {
				return nil
			}
			all = append(all, mounts[c.ID]...)
		}
		if err := holders.WaitMounts(ctx, all); err != nil {
			return err
		}
	}
}

// users returns the mounts that use these contents.
func (b *Backend) users(ctx context.Context, contents []Content) (map[uint64][]holders.Mount, error) {
	root, err := holders.Locate(b.root)
	if errors.Is(err, holders.ErrUnseen) {
		b.sayHidden(ctx)
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("who uses %s: %w", b.root, err)
	}
	users := make(map[uint64][]holders.Mount, len(contents))
	for _, c := range contents {
		users[c.ID] = nil
	}
	found, err := holders.FindMounts(ctx, func(m *holders.Mount) bool { return len(usedBy(root, m, users)) > 0 })
	if err != nil {
		return nil, fmt.Errorf("who uses %s: %w", b.root, err)
	}
	if found.Hidden > 0 || holders.Blind() {
		b.sayHidden(ctx)
	}
	for _, m := range found.List {
		for _, id := range usedBy(root, &m, users) {
			users[id] = append(users[id], m)
		}
	}
	return users, nil
}

// usedBy returns which of the contents a mount uses, each once.
func usedBy(root holders.Directory, m *holders.Mount, contents map[uint64][]holders.Mount) (ids []uint64) {
	seen := map[uint64]bool{}
	for _, path := range root.Uses(m) {
		name, _, _ := strings.Cut(path, string(os.PathSeparator))
		id, ok := parseName(name)
		if _, asked := contents[id]; ok && asked && !seen[id] {
			seen[id] = true
			ids = append(ids, id)
		}
	}
	return ids
}

// sayHidden tells once that this process does not see all mounts.
func (b *Backend) sayHidden(ctx context.Context) {
	b.hidden.Do(func() {
		log.G(ctx).Warnf("not all processes' mounts can be read here (another pid namespace or root, hidepid, or not root): %s",
			cmp.Or(b.unseen, "what they still mount of a removed snapshot is deleted all the same"))
	})
}
