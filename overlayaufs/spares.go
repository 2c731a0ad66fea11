package overlayaufs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/internal/failpoint"
)

// A spare is a content that was made before anybody asked for it: Make gives it a number by one rename, where it would make three
// directories. To make a directory holds the lock of the one above for as long as the file system looks for an inode.
//
// A spare is made in the directory .spares, and then moved into the root: a rename within one directory waits for nobody who makes
// something elsewhere.
//
// Nothing is written down of spares, and none outlives the process: all that is found at a start is removed, before the first is made.
// So it does not matter what a kill or a power cut leaves of one that is still a spare. One that was renamed is a content, of which
// fs has had its owner and mode before; see make.
//
// That a file which is synced in a content takes the rename with it is so only where the journal keeps the order of all that
// changes names. ext4 and xfs do. btrfs may bring back the file under the old name of the directory, and would lose it to the next
// start: there are no spares there, nor on any other that is not known.
//
// ext4 without a journal writes with such a file the directories above it that have a new name since they are in memory
// (EXT4_STATE_NEWENTRY, ext4_sync_parent in fs/ext4/fsync.c), and a spare may have left it since it was made. So both fs and the
// directory above it get their names, by a rename, when the spare is used.
const (
	sparesName  = ".spares" // where they are made
	sparePrefix = ".spare-" // of their names in the root

	sparesKept = 64
	sparesLow  = sparesKept / 2 // from here on they are made while others are taken

	// sparesRest is how long nobody must have taken one before the last half is made again: not while calls come.
	sparesRest = 20 * time.Millisecond

	// On a file system with less room there are none: they are not to take what somebody else needs.
	sparesMinBytes  = 64 << 20
	sparesMinInodes = 4096

	sparesFirstRetry, sparesLastRetry = time.Second, time.Minute

	// sparesCloseWait is how long Close waits for one to be made, on a disk that may hang.
	sparesCloseWait = 5 * time.Second
)

// A spare is a directory in the root, and what its fs has.
type spare struct {
	name string
	root rootDir
}

// spares are those of a place. The zero value has none and makes none.
type spares struct {
	begin sync.Once
	taken chan struct{} // holds one: somebody took one; nil where none are kept
	low   chan struct{} // holds one: few are left
	end   context.CancelFunc
	done  chan struct{} // closed when nobody makes them any more

	mu    sync.Mutex
	ready []spare
	said  sync.Once // that one could not be used
	count uint64    // of those that were made
}

// keepSpares has removed in the background what another process has left of spares, and begins to make some, unless they would be of
// no use: where contents are in projects, all in them must be made in the project.
func (b *Backend) keepSpares(ctx context.Context) {
	first, _ := b.Projects()
	kept := first == 0 && slices.Contains([]string{"ext4", "xfs", "tmpfs"}, fsType(b.root))
	s := &b.spares
	s.begin.Do(func() {
		lasting, end := context.WithCancel(context.WithoutCancel(ctx))
		s.end, s.done = end, make(chan struct{})
		if kept {
			s.mu.Lock()
			s.taken, s.low = make(chan struct{}, 1), make(chan struct{}, 1)
			s.mu.Unlock()
		}
		go b.makeSpares(lasting)
	})
}

// stopSpares returns when nobody makes spares any more. Those that there are stay for the next start.
func (b *Backend) stopSpares() error {
	s := &b.spares
	s.begin.Do(func() {}) // none from now on
	if s.end == nil {
		return nil
	}
	s.end()
	select {
	case <-s.done:
		return nil
	case <-time.After(sparesCloseWait):
		return fmt.Errorf("a directory is still being made in %s after %v", b.root, sparesCloseWait)
	}
}

// take returns a spare that nobody else has, if there is one.
func (s *spares) take() (taken spare, ok bool) {
	s.mu.Lock()
	n := len(s.ready)
	if n > 0 {
		taken, s.ready = s.ready[n-1], s.ready[:n-1]
	}
	kept := s.taken != nil
	s.mu.Unlock()
	if !kept {
		return spare{}, false
	}
	signal(s.taken)
	if n <= sparesLow {
		signal(s.low)
	}
	return taken, n > 0
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (s *spares) left() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.ready)
}

// makeSpares makes spares until ctx ends: few at a time while they are needed, the others when nobody does.
func (b *Backend) makeSpares(ctx context.Context) {
	defer close(b.spares.done)
	var wait time.Duration // after an error
	next := time.NewTimer(0)
	defer next.Stop()
	wiped := false
	for {
		enough := sparesKept
		taken, low := b.spares.taken, b.spares.low
		if wait > 0 { // nobody may call for them
			taken, low = nil, nil
		}
		select {
		case <-ctx.Done():
			return
		case <-taken:
			next.Reset(sparesRest)
			continue
		case <-low:
			enough = sparesLow + 1
		case <-next.C:
		}
		var err error
		if !wiped {
			err = b.wipeSpares(ctx)
			wiped = err == nil
		}
		if wiped && b.spares.taken == nil { // none are kept
			rested()
			return
		}
		if err == nil {
			err = b.fillSpares(ctx, enough)
		}
		switch {
		case ctx.Err() != nil:
			return
		case err == nil && enough < sparesKept:
			wait = 0
			next.Reset(sparesRest)
			continue
		case err == nil:
			wait = 0
			rested()
			continue
		case wait == 0:
			log.G(ctx).WithError(err).Infof("no directories are made ahead in %s for a while", b.root)
		}
		wait = min(max(2*wait, sparesFirstRetry), sparesLastRetry)
		next.Reset(wait)
		rested()
	}
}

// rested marks that no spares are made for now.
func rested() { failpoint.Hit("spare.rested") }

// fillSpares makes spares until there are enough, or somebody comes for one while there are some.
func (b *Backend) fillSpares(ctx context.Context, enough int) error {
	s := &b.spares
	for left := s.left(); left < enough && ctx.Err() == nil; left = s.left() {
		if err := checkSpareRoom(b.root); err != nil {
			return err
		}
		made, err := b.makeSpare(ctx)
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.ready = append(s.ready, made)
		s.mu.Unlock()
		if left >= sparesLow && len(s.taken) > 0 {
			return nil // makeSpares has a look at it
		}
	}
	return ctx.Err()
}

var errSpareRoom = errors.New("the file system is nearly full")

func checkSpareRoom(root string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: root, Err: err}
	}
	if st.Bavail*uint64(st.Bsize) < sparesMinBytes || st.Files > 0 && st.Ffree < sparesMinInodes {
		return errSpareRoom
	}
	return nil
}

// makeSpare makes one. What an error leaves of it is removed.
func (b *Backend) makeSpare(ctx context.Context) (spare, error) {
	b.spares.count++
	number := strconv.FormatUint(b.spares.count, 10)
	made := spare{name: sparePrefix + number}
	dir := filepath.Join(b.root, sparesName, number)
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, os.ErrNotExist) {
		if err = os.Mkdir(filepath.Join(b.root, sparesName), 0o700); err == nil {
			err = os.Mkdir(dir, 0o700)
		}
	}
	if err != nil {
		return made, err
	}
	failpoint.Hit("spare.begun")
	err = os.Mkdir(filepath.Join(dir, workName), workMode)
	if err == nil {
		err = baseRoot().create(filepath.Join(dir, newName))
	}
	if err == nil { // a root with the set-group-id bit gives its own group
		made.root, err = readRootDir(filepath.Join(dir, newName))
	}
	if err == nil {
		failpoint.Hit("spare.complete")
		err = renameNew(dir, filepath.Join(b.root, made.name))
	}
	if err != nil {
		return made, errors.Join(err, b.removeSpare(ctx, filepath.Join(sparesName, number)))
	}
	failpoint.Hit("spare.made")
	return made, nil
}

func (b *Backend) removeSpare(ctx context.Context, name string) error {
	return b.onRoot("remove spare", func(fd int) error { return removeTree(context.WithoutCancel(ctx), fd, name) })
}

// wipeSpares removes what another process has left of spares.
func (b *Backend) wipeSpares(ctx context.Context) error {
	entries, err := os.ReadDir(b.root)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if isSpare(e.Name()) {
			failpoint.Hit("spare.wipe")
			if err := b.removeSpare(ctx, e.Name()); err != nil {
				return err
			}
		}
	}
	return nil
}

// isSpare reports whether a name in the root is that of a spare, or of where they are made.
func isSpare(name string) bool { return name == sparesName || strings.HasPrefix(name, sparePrefix) }

// useSpare makes a content of a spare, with that root directory. It returns false where there is none, or none that can be used: what
// keeps it from that is told once, and what is to be done without may go well.
func (b *Backend) useSpare(ctx context.Context, id uint64, root rootDir, mark func(dir string) error) (used bool) {
	s, ok := b.spares.take()
	if !ok {
		return false
	}
	err := b.turnInto(ctx, id, s, root, mark)
	if err == nil {
		return true
	}
	gone := errors.Is(err, os.ErrNotExist) // somebody has removed it
	err = errors.Join(err, b.removeSpare(ctx, s.name))
	if !gone && ctx.Err() == nil {
		b.spares.said.Do(func() {
			log.G(ctx).WithError(err).Warnf("a directory that was made ahead in %s could not be used; others are made instead", b.root)
		})
	}
	return false
}

// turnInto makes a content of that spare.
//
// The last rename is what makes it a content: before it there is a spare, after it a content that is whole.
func (b *Backend) turnInto(ctx context.Context, id uint64, s spare, root rootDir, mark func(dir string) error) error {
	dir := filepath.Join(b.root, s.name)
	if err := s.root.become(root, filepath.Join(dir, newName)); err != nil {
		return err
	}
	if err := mark(dir); err != nil {
		return err
	}
	if err := renameNew(filepath.Join(dir, newName), filepath.Join(dir, fsName)); err != nil {
		return err
	}
	failpoint.Hit("union.spare-taken")
	err := renameNew(dir, b.path(id))
	if errors.Is(err, unix.EEXIST) { // garbage that a crash left
		if err = b.Delete(ctx, Content{ID: id}); err == nil {
			err = renameNew(dir, b.path(id))
		}
	}
	if err == nil {
		failpoint.Hit("union.spare-used")
	}
	return err
}

// renameNew renames a directory to what must not be there yet. os.Rename looks first.
func renameNew(from, to string) error {
	if err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE); err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}
