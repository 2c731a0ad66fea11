package overlayaufs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lamina-snapshotter/lamina/overlayaufs/internal/quota"
)

// A Survey is what lies in a root, for whoever compares it with the store.
type Survey struct {
	UUID  string // of the store that the root belongs to; "" if it is missing or new
	Start uint64 // of that store, when it last claimed the root

	Counted bool // the file system counts projects

	// Unsettled says, if the layers are being migrated from one form to the other, how to finish that.
	Unsettled error

	Contents []Remains // by ascending number
	Foreign  []string  // names that are not of this package
}

// Remains are what there is of a content. One without FS is half made or half deleted.
type Remains struct {
	ID   uint64
	FS   bool // what the layer holds
	Work bool // what overlayfs needs to write to it

	Project uint32 // that FS is in, if the file system counts them
}

// Look surveys a root, whether a Backend is open on it or not. It changes nothing. A root that is missing is as good as an
// empty one; what Owner refuses is the same error here.
func Look(ctx context.Context, root string) (*Survey, error) {
	o, err := readOwner(root)
	if err != nil {
		return nil, err
	}
	s := &Survey{UUID: o.UUID, Start: o.Start, Unsettled: o.checkSettled(root), Counted: countsProjects(root)}
	entries, err := os.ReadDir(root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("look at %s: %w", root, err)
		}
		id, ok := parseID(e.Name())
		if !ok || !e.IsDir() {
			if e.Name() != ownerName && !isOurs(e.Name()) && !isSpare(e.Name()) {
				s.Foreign = append(s.Foreign, e.Name())
			}
			continue
		}
		r := Remains{ID: id}
		for name, has := range map[string]*bool{fsName: &r.FS, workName: &r.Work} {
			if *has, err = isDir(filepath.Join(root, e.Name(), name)); err != nil {
				return nil, err
			}
		}
		if s.Counted && r.FS {
			if r.Project, err = projectAt(filepath.Join(root, e.Name(), fsName)); err != nil {
				return nil, err
			}
		}
		s.Contents = append(s.Contents, r)
	}
	slices.SortFunc(s.Contents, func(a, b Remains) int { return cmp.Compare(a.ID, b.ID) })
	return s, nil
}

// countsProjects reports whether the file system of a root is known to count projects. Who may not ask need not know.
func countsProjects(root string) bool {
	var state quota.State
	err := onDir(root, func(fd int) (err error) {
		_, state, err = quota.Find(fd)
		return err
	})
	return err == nil && state.Counted
}

// projectAt returns the project of a directory, 0 if it is gone.
func projectAt(dir string) (project uint32, err error) {
	err = onDir(dir, func(fd int) error {
		project, err = quota.Project(fd)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	return project, err
}

func isDir(path string) (bool, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && info.IsDir(), err
}

// InContent returns which content of a root a path lies in.
func InContent(root, path string) (id uint64, ok bool) {
	rel, err := filepath.Rel(root, path)
	if err != nil {
		return 0, false
	}
	name, _, _ := strings.Cut(rel, "/")
	return parseName(name)
}
