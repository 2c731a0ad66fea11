package dmthin

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
)

// A SurveyedLoop is a loop device of a pool on files.
type SurveyedLoop struct {
	Path    string // of the device
	File    string
	Deleted bool // another file, or none, has the name of the one behind it now
	// Nameless says of a deleted one that no file has the name: what is behind it is the last copy.
	Nameless bool
	Used     bool // the pool runs on it
	Double   bool // another loop device has the same file, and the pool does not run on this one
}

// deletedSuffix is what the kernel adds to the path of a file that has no name any more (d_path in fs/d_path.c).
const deletedSuffix = " (deleted)"

// lookAtLoops finds the loop devices of the two files: by their inodes, and by the name that one had which is no more.
func (s *Survey) lookAtLoops(control *dm.Control, c Config) error {
	var used []dm.DevNum
	if control != nil && s.Pool.Running {
		var err error
		if used, err = control.Deps(prefix(c.Store) + "-pool"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	attached, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return err
	}
	p := &loopPlace{dir: c.Root}
	for _, file := range []string{p.metadataFile(), p.dataFile()} {
		first := len(s.Loops)
		for _, backing := range attached {
			name := filepath.Base(filepath.Dir(filepath.Dir(backing)))
			l, ok, err := lookAtLoop(name, backing, file, used)
			if err != nil {
				return err
			}
			if ok {
				s.Loops = append(s.Loops, l)
			}
		}
		markDouble(s.Loops[first:])
	}
	return nil
}

// lookAtLoop tells whether a loop device is one of a file's. It goes by the inode, and by the name if the file that had it
// is deleted. A device that goes away meanwhile is none.
func lookAtLoop(name, backing, file string, used []dm.DevNum) (l SurveyedLoop, ok bool, err error) {
	text, err := os.ReadFile(backing)
	if err != nil {
		return l, false, unlessDetached(err)
	}
	path := strings.TrimSuffix(string(text), "\n")
	device, found, err := openLoop(name, os.O_RDONLY)
	if err != nil {
		return l, false, unlessDetached(err)
	}
	defer device.Close() //nolint:errcheck // nothing was written through it
	info, err := unix.IoctlLoopGetStatus64(int(device.Fd()))
	if err != nil {
		return l, false, unlessDetached(err)
	}
	var st unix.Stat_t
	err = unix.Stat(file, &st)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return l, false, &os.PathError{Op: "stat", Path: file, Err: err}
	}
	same := err == nil && info.Device == st.Dev && info.Inode == st.Ino
	if !same && path != file && path != file+deletedSuffix {
		return l, false, nil
	}
	return SurveyedLoop{Path: found.path, File: file, Deleted: !same, Nameless: err != nil, Used: slices.Contains(used, found.dev)}, true, nil
}

// unlessDetached returns nil for the error of a loop device that has no file any more.
func unlessDetached(err error) error {
	if errors.Is(err, unix.ENXIO) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// markDouble marks, of the loop devices of one file, all but the one that the pool runs on, or that it would run on.
func markDouble(loops []SurveyedLoop) {
	keep := -1
	for i, l := range loops {
		if !l.Deleted && (keep < 0 || l.Used) {
			keep = i
		}
	}
	for i := range loops {
		loops[i].Double = !loops[i].Deleted && !loops[i].Used && i != keep
	}
}
