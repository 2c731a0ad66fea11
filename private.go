package lamina

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// withheld are the permissions that nobody but the owner has to what is in a root.
const withheld = 0o077

// makeRoot makes the root for its owner alone, as it holds the files of all containers. One that exists has to be its owner's alone
// too, and so has what lies in it: wider modes are narrowed, which is said; what belongs to another user is an error.
func makeRoot(ctx context.Context, root string) error {
	if err := os.MkdirAll(filepath.Dir(root), 0o711); err != nil {
		return err
	}
	// Not MkdirAll: it takes the mode for every directory that it makes, and a path that is a file for an error without
	// a name.
	if err := os.Mkdir(root, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	for _, dir := range movable(root) {
		log.G(ctx).WithField("directory", dir).Warnf("other users may write to it, and so put another directory in the place of the root %s", root)
	}
	// First the root: once it is, nobody else changes what is in it any more.
	if err := makePrivate(ctx, root, true); err != nil {
		return err
	}
	for _, path := range []string{
		"lamina.db", "lamina.db.new", "union", "union/owner", "thin", "thin/owner", "thin/metadata", "thin/data",
	} {
		err := makePrivate(ctx, filepath.Join(root, path), path == "union" || path == "thin")
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
			return err
		}
	}
	return nil
}

// makePrivate takes the permissions of others away from a file or a directory, and says so. A symbolic link is followed if its owner
// is one whom the root may belong to: an operator may have moved a part of a root to another disk.
func makePrivate(ctx context.Context, path string, directory bool) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if err := checkUser(path, info); err != nil {
		return err
	}
	flags := unix.O_PATH | unix.O_CLOEXEC
	if info.Mode().Type() != fs.ModeSymlink {
		flags |= unix.O_NOFOLLOW // a link put there since is another's
	}
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // nothing was written through it
	if info, err = f.Stat(); err != nil {
		return err
	}
	if err := checkUser(path, info); err != nil {
		return err
	}
	if directory && !info.IsDir() {
		return fmt.Errorf("%s is not a directory", path)
	}
	mode := info.Mode().Perm()
	if mode&withheld == 0 {
		return nil
	}
	log.G(ctx).WithField("path", path).Warnf("it had the mode %04o: other users' permissions are taken away", mode)
	return os.Chmod(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), mode&^withheld) // the very file that was looked at
}

// checkUser refuses what belongs neither to root nor to the user of this process: that user can give it any mode again.
func checkUser(path string, info fs.FileInfo) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	if st.Uid == 0 || int(st.Uid) == os.Geteuid() {
		return nil
	}
	return fmt.Errorf("%s belongs to user %d, who could change it at any time: look at it, then give it to root with chown --no-dereference, or choose another root", path, st.Uid)
}

// movable returns the directories on the way to root in which others may rename what is not theirs.
func movable(root string) (dirs []string) {
	for dir := filepath.Dir(filepath.Clean(root)); ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err == nil && info.Mode()&0o022 != 0 && info.Mode()&fs.ModeSticky == 0 {
			dirs = append(dirs, dir)
		}
		if dir == filepath.Dir(dir) {
			slices.Reverse(dirs)
			return dirs
		}
	}
}
