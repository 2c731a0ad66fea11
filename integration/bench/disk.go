package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// diskSize is that of a file system that the bench makes. It is sparse.
const diskSize = 20 << 30

// syncDisk writes what is to be written to the file system of dir.
func syncDisk(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}

// A disk is what is said of the file system that all snapshotters have their things on.
type disk struct {
	FileSystem string `json:"file_system"`
	// Journal is false of an ext4 without one. That looks, when a directory is made, at each inode that was deleted within
	// the last seconds, which makes all slower that comes after a removal.
	Journal       bool `json:"journal"`
	ProjectQuotas bool `json:"project_quotas"`
	Made          bool `json:"made"` // by this program, in a sparse file
}

func (d disk) String() string {
	name := d.FileSystem
	if !d.Journal {
		name += " without a journal"
	}
	if d.ProjectQuotas {
		name += ", with project quotas"
	}
	if d.Made {
		name += ", in a sparse file"
	}
	return name
}

// diskOf looks at the file system of dir.
func diskOf(dir string) (disk, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return disk{}, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return uint64(m.Major) != uint64(unix.Major(st.Dev)) || uint64(m.Minor) != uint64(unix.Minor(st.Dev)), false
	})
	if err != nil || len(mounts) == 0 {
		return disk{FileSystem: "unknown", Journal: true}, err
	}
	m := mounts[0]
	d := disk{FileSystem: m.FSType, Journal: true}
	for option := range strings.SplitSeq(m.VFSOptions, ",") {
		d.ProjectQuotas = d.ProjectQuotas || option == "prjquota" || option == "pquota"
	}
	if m.FSType == "ext4" {
		d.Journal, err = haveJournal(st.Dev)
	}
	return d, err
}

// haveJournal reports whether jbd2 has a journal for an ext4: it shows each in a directory that is called after the device.
func haveJournal(dev uint64) (bool, error) {
	link, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(dev), unix.Minor(dev)))
	if err != nil {
		return false, err
	}
	found, err := filepath.Glob("/proc/fs/jbd2/" + filepath.Base(link) + "-*")
	return len(found) > 0, err
}

// makeDisk makes a file system in a sparse file, and mounts it: ext4 with a journal, or xfs. It has project quotas, unless this
// kernel cannot mount it with them: then it has none, and why says so.
func makeDisk(ctx context.Context, dir, fs string) (mnt string, unmount func() error, why error, err error) {
	file, mnt := filepath.Join(dir, "disk"), filepath.Join(dir, "mnt")
	err = errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, diskSize), os.Mkdir(mnt, 0o700))
	if err != nil {
		return "", nil, nil, fmt.Errorf("a file system to measure on: %w", err)
	}
	unmount = func() error { return unix.Unmount(mnt, 0) }
	if why = mountNew(ctx, fs, file, mnt, true); why == nil {
		return mnt, unmount, nil, nil
	}
	if err = mountNew(ctx, fs, file, mnt, false); err != nil {
		return "", nil, nil, fmt.Errorf("a file system to measure on: %w", errors.Join(why, err))
	}
	return mnt, unmount, why, nil
}

// mountNew makes a file system in a file, and mounts it.
func mountNew(ctx context.Context, fs, file, mnt string, quotas bool) error {
	mkfs, options := []string{"mkfs.xfs", "-q", "-f"}, "loop"
	if fs == "ext4" {
		mkfs = []string{"mkfs.ext4", "-q", "-F", "-O", "has_journal", "-E", "lazy_itable_init=0,lazy_journal_init=0"}
	}
	switch {
	case quotas && fs == "ext4":
		mkfs, options = append(mkfs, "-O", "quota,project"), options+",prjquota"
	case quotas:
		options += ",pquota"
	}
	if err := command(ctx, mkfs[0], append(mkfs[1:], file)...); err != nil {
		return err
	}
	// One that was begun is ended, so that its mount and its loop device are known of.
	return command(context.WithoutCancel(ctx), "mount", "-t", fs, "-o", options, file, mnt)
}

// clearDir removes a directory with all that is in it. What an interruption has left mounted is unmounted before.
func clearDir(dir string) error {
	left, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(left) {
		if err := unix.Unmount(m.Mountpoint, 0); err != nil && m.Mountpoint != dir {
			return fmt.Errorf("unmount %s: %w", m.Mountpoint, err) // and leave it
		}
	}
	return os.RemoveAll(dir)
}
