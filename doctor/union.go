package doctor

import (
	"context"
	"path/filepath"
	"strconv"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/lamina-snapshotter/lamina/metadata"
	"github.com/lamina-snapshotter/lamina/overlayaufs"
)

// union compares the directories of the union backend with the store.
func (e *examination) union(ctx context.Context) error {
	survey, err := e.unionSurvey(ctx)
	if err != nil {
		return err
	}
	if !e.place(e.UnionRoot, survey.UUID, survey.Start, len(survey.Contents) == 0, len(e.first.directories)) {
		return nil
	}
	if survey.Unsettled != nil {
		e.found(finding(PlaceUnsettled, e.UnionRoot, "%v", survey.Unsettled))
	}
	for _, name := range survey.Foreign {
		e.found(finding(PlaceStray, filepath.Join(e.UnionRoot, name), "it is no content"))
	}
	now, err := e.again(ctx, metadata.Directory)
	if err != nil {
		return err
	}
	there := make(map[uint64]overlayaufs.Remains, len(survey.Contents))
	var surplus []uint64
	for _, r := range survey.Contents {
		there[r.ID] = r
		if _, ok := now.directories[r.ID]; !ok && !now.trashed[metadata.Directory][r.ID] {
			surplus = append(surplus, r.ID)
		}
	}
	both(e.first.directories, now.directories, func(id uint64, link metadata.Link) {
		e.missingDirectory(there[id], link)
		e.otherProject(survey, there[id], link)
	})
	return e.surplusDirectories(ctx, surplus)
}

func (e *examination) directory(id uint64) string {
	return filepath.Join(e.UnionRoot, strconv.FormatUint(id, 10))
}

// missingDirectory reports a directory that is missing, or a part of it. What was never committed may have been lost to a
// power cut on a file system where the store's fsync does not cover it.
func (e *examination) missingDirectory(r overlayaufs.Remains, link metadata.Link) {
	dir := e.directory(link.Content())
	active := link.Kind == snapshots.KindActive
	switch {
	case r.ID == 0 && active:
		e.found(e.of(finding(ContentMissing, dir, "the directory of an active snapshot is missing"), link.ID))
	case r.ID == 0:
		e.found(e.of(finding(ContentLost, dir, "the directory of a committed snapshot is missing"), link.ID))
	case !r.FS && active:
		e.found(e.of(finding(ContentMissing, dir, "it has no directory fs"), link.ID))
	case !r.FS:
		e.found(e.of(finding(ContentLost, dir, "it has no directory fs, which the layer would be in"), link.ID))
	case !r.Work && active:
		e.found(e.of(finding(ContentMissing, dir, "it has no directory work, which overlayfs needs"), link.ID))
	}
}

// otherProject reports a layer that the file system counts under another project than the one in the record.
func (e *examination) otherProject(survey *overlayaufs.Survey, r overlayaufs.Remains, link metadata.Link) {
	if want := link.Placement.Project; survey.Counted && r.FS && want != 0 && r.Project != want {
		e.found(e.of(finding(ContentProject, e.directory(link.Content()), "it is in project %d, and recorded in %d", r.Project, want), link.ID))
	}
}

// surplusDirectories reports directories that neither a record nor the trash names, if they are still there: the number of
// a directory is never given again.
func (e *examination) surplusDirectories(ctx context.Context, surplus []uint64) error {
	if e.Live != nil && len(surplus) > 0 {
		survey, err := e.unionSurvey(ctx)
		if err != nil {
			return err
		}
		still := map[uint64]bool{}
		for _, r := range survey.Contents {
			still[r.ID] = true
		}
		surplus = keep(surplus, func(id uint64) bool { return still[id] })
	}
	for _, id := range surplus {
		e.found(finding(ContentSurplus, e.directory(id), "neither a record nor the trash names it"))
	}
	return nil
}

func keep[T any](all []T, which func(T) bool) (kept []T) {
	for _, one := range all {
		if which(one) {
			kept = append(kept, one)
		}
	}
	return kept
}
