package holders

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// sysAufs is where each aufs has a directory si_ID with a file brN for each branch (Documentation/ABI/testing/sysfs-aufs).
const sysAufs = "/sys/fs/aufs"

// The module refuses to show a branch while the union is being changed, and tells nobody when it has been: so it is asked
// again a few times.
const (
	branchTries = 20
	branchPause = 5 * time.Millisecond
)

// branchesOf returns the directories that an aufs with these options is made of, as this process calls them. They stand in the
// options themselves where the module keeps them out of /sys (its parameter brs). A union that has just been unmounted has
// none. That they cannot be told is an error: whoever asks is about to delete something.
func branchesOf(ctx context.Context, sys, options string) ([]string, error) {
	var dirs []string
	id := ""
	for option := range strings.SplitSeq(options, ",") {
		if list, ok := strings.CutPrefix(option, "br:"); ok {
			for branch := range strings.SplitSeq(list, ":") {
				dirs = append(dirs, branchPath(branch))
			}
		}
		if value, ok := strings.CutPrefix(option, "si="); ok {
			id = value
		}
	}
	if len(dirs) > 0 || id == "" {
		return dirs, nil
	}
	files, err := branchFiles(filepath.Join(sys, "si_"+id))
	if errors.Is(err, fs.ErrNotExist) {
		if _, seen := os.Stat(sys); seen == nil {
			return nil, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("which directories an aufs is made of: %w", err)
	}
	for _, file := range files {
		text, err := readBranch(ctx, file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("which directories an aufs is made of: %w", err)
		}
		dirs = append(dirs, branchPath(strings.TrimSuffix(text, "\n")))
	}
	return dirs, nil
}

// branchFiles returns the files of the branches: brN, beside bridN and others.
func branchFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, e := range entries {
		if n, ok := strings.CutPrefix(e.Name(), "br"); ok && n != "" && n[0] >= '0' && n[0] <= '9' {
			files = append(files, filepath.Join(dir, e.Name()))
		}
	}
	return files, nil
}

func readBranch(ctx context.Context, file string) (text string, err error) {
	for range branchTries {
		data, err := os.ReadFile(file)
		if !errors.Is(err, unix.EBUSY) {
			return string(data), err
		}
		select {
		case <-time.After(branchPause):
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
	return "", &os.PathError{Op: "read", Path: file, Err: unix.EBUSY}
}

// branchPath returns the path of a branch that is shown as PATH=PERMISSION.
func branchPath(branch string) string {
	if i := strings.LastIndexByte(branch, '='); i >= 0 {
		branch = branch[:i]
	}
	return unescape([]byte(branch))
}
