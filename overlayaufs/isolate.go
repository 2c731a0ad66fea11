package overlayaufs

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// isolated calls fn on a thread with a mount namespace of its own, so that what fn mounts is seen by nobody and ends
// with the thread at the latest. fn must not start goroutines that mount.
func isolated(fn func()) error {
	done := make(chan error)
	go func() { done <- onOwnThread(fn) }()
	return <-done
}

// onOwnThread does the work of isolated on a goroutine of its own, which stays locked to its thread: the runtime then
// ends the thread when the goroutine ends.
//
// Except the process's first thread: the runtime keeps that, parked, and /proc/self would show its mounts for ever.
// So if we happen to be on it, we stay there until another goroutine, for which only other threads are left, is done.
func onOwnThread(fn func()) error {
	runtime.LockOSThread()
	if unix.Gettid() == os.Getpid() {
		defer runtime.UnlockOSThread()
		return isolated(fn)
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return &os.PathError{Op: opMount, Path: "unshare", Err: err}
	}
	// Otherwise mounts would spread to where we came from.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return &os.PathError{Op: opMount, Path: "/", Err: err}
	}
	fn()
	return nil
}
