package holders

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxWatched is how many mount namespaces are watched at once; each takes two file descriptors. For what is mounted in
	// others the backstop counts.
	maxWatched = 64

	// backstop bounds how long the kernel is trusted to tell.
	backstop = 30 * time.Second
)

// WaitMounts returns nil when one of these mounts, which [FindMounts] has found, may be gone, and ctx's error when that ends
// before. It takes a thread meanwhile, and a bounded number of file descriptors.
//
// The kernel wakes a poll of a mountinfo file for every mount and unmount in its namespace (mounts_poll in
// fs/proc_namespace.c). But an open mountinfo file also keeps its namespace, with all mounts, when the last process has
// left it. So the process through which it was opened is waited for as well, by a pidfd: a process leaves its namespaces
// before that tells its end. At return all files are closed.
func WaitMounts(ctx context.Context, mounts []Mount) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ended, end, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ended.Close() //nolint:errcheck // nothing was written through it
	defer end.Close()   //nolint:errcheck // nothing was written through it
	defer context.AfterFunc(ctx, func() { _ = end.Close() })()

	w := &watch{}
	defer w.close()
	w.add(int(ended.Fd()), unix.POLLIN)
	for _, list := range byView(mounts) {
		if !w.addView(list) {
			return nil
		}
	}
	for until := time.Now().Add(backstop); time.Now().Before(until); {
		if gone, err := w.wait(time.Until(until)); gone || err != nil {
			return errors.Join(ctx.Err(), err)
		}
	}
	return nil
}

// byView returns the mounts in groups that one file shows.
func byView(mounts []Mount) map[int][]Mount {
	groups := map[int][]Mount{}
	for _, m := range mounts {
		if _, known := groups[m.PID]; known || len(groups) < maxWatched {
			groups[m.PID] = append(groups[m.PID], m)
		}
	}
	return groups
}

// A watch is what one thread waits for.
type watch struct {
	fds   []unix.PollFd
	views map[int]watchedView // by the index of the mountinfo file in fds
	files []*os.File
}

// A watchedView is a mountinfo file, and the mounts that are to be in it.
type watchedView struct {
	file   *os.File
	mounts []Mount
}

func (w *watch) add(fd int, events int16) {
	w.fds = append(w.fds, unix.PollFd{Fd: int32(fd), Events: events})
}

// addView begins to watch mounts of one namespace. It reports whether all of them are there.
func (w *watch) addView(mounts []Mount) bool {
	pid := mounts[0].PID
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return false
	}
	if err == nil { // otherwise the kernel has none (Linux 5.3), or no file descriptor is left
		w.files = append(w.files, os.NewFile(uintptr(fd), "pidfd"))
		w.add(fd, unix.POLLIN)
	} else {
		return true
	}
	file, err := openUnpolled(proc(pid, "mountinfo"))
	if err != nil {
		return !isGone(err)
	}
	w.files = append(w.files, file)
	if ns, err := mountNamespace(pid); err != nil || ns != mounts[0].Namespace {
		return false
	}
	v := watchedView{file, mounts}
	if w.views == nil {
		w.views = map[int]watchedView{}
	}
	w.views[len(w.fds)] = v
	w.add(int(file.Fd()), unix.POLLPRI)
	return v.complete()
}

// openUnpolled opens a file to be read that the runtime does not poll. It would poll a mountinfo file that os.Open opens, and
// so take the events: the kernel tells each open file of an event once.
func openUnpolled(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// complete reports whether the file still shows all the mounts. What cannot be read is taken for gone: the caller looks.
func (v watchedView) complete() bool {
	if _, err := v.file.Seek(0, 0); err != nil {
		return false
	}
	missing := map[int]Mount{}
	for _, m := range v.mounts {
		missing[m.ID] = m
	}
	_, err := parseMounts(v.file, func(m *Mount) bool {
		if was, ok := missing[m.ID]; ok && was.MountPoint == m.MountPoint && was.Root == m.Root {
			delete(missing, m.ID)
		}
		return false
	})
	return err == nil && len(missing) == 0
}

// wait returns true when a mount may be gone or the context has ended, and false when there is nothing to tell.
func (w *watch) wait(limit time.Duration) (gone bool, err error) {
	_, err = unix.Poll(w.fds, int(limit.Milliseconds())+1)
	if errors.Is(err, unix.EINTR) {
		return false, nil
	}
	if err != nil {
		return false, os.NewSyscallError("poll", err)
	}
	for i, fd := range w.fds {
		if fd.Revents == 0 {
			continue
		}
		v, ok := w.views[i]
		if !ok || !v.complete() { // the context, a process, or a mount
			return true, nil
		}
	}
	return false, nil
}

func (w *watch) close() {
	for _, f := range w.files {
		_ = f.Close() // nothing was written
	}
}
