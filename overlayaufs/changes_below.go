package overlayaufs

import (
	"errors"
	"path"

	"golang.org/x/sys/unix"
)

// A below is the layers below the topmost, where it is asked what a directory hides. overlayfs marks each new directory as opaque,
// if it can (ovl_create_upper in fs/overlayfs/dir.c), and few of them hide anything.
type below struct {
	b       *Backend
	marks   marks
	layers  []uint64
	renamed map[string]bool // directories that were asked for: whether a layer has them, or those above, under other names
}

// lacks reports whether the layers have no directory name in the directory dir. Where that takes more than a look at each, it
// says that they may have one.
func (s *below) lacks(dir, name string) (lacks bool, err error) {
	if s.marks.driver != driverOverlay {
		return false, nil
	}
	err = s.b.onRoot("look below", func(root int) error {
		renamed, err := s.isRenamed(root, path.Clean(dir))
		if err != nil || renamed {
			return err
		}
		lacks, err = s.each(root, path.Join(dir, name), func(int) (bool, error) { return false, nil })
		return err
	})
	return lacks, err
}

// isRenamed reports whether a layer may have a directory under another name.
func (s *below) isRenamed(root int, dir string) (renamed bool, err error) {
	if dir == "." {
		return false, nil
	}
	if renamed, known := s.renamed[dir]; known {
		return renamed, nil
	}
	renamed, err = s.isRenamed(root, path.Dir(dir))
	if err == nil && !renamed {
		var named bool
		named, err = s.each(root, dir, func(fd int) (bool, error) {
			mark, err := s.marks.overlayDir(fd)
			return !mark.redirected, err
		})
		renamed = !named
	}
	s.renamed[dir] = renamed
	return renamed, err
}

// each reports whether ok returns true for the directory of this path in each layer that has one.
func (s *below) each(root int, where string, ok func(fd int) (bool, error)) (bool, error) {
	for _, id := range s.layers {
		fd, err := openDir(root, path.Join(dirName(id), where))
		switch {
		case isGone(err): // or a symbolic link is on the way, and no directory
			continue
		case errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.EXDEV):
			return false, nil
		case err != nil:
			return false, err
		}
		is, err := ok(fd)
		if err = errors.Join(err, unix.Close(fd)); !is || err != nil {
			return false, err
		}
	}
	return true, nil
}
