package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A socket is a listening unix socket that is ours: <address>.lock is held from before the first look at the path until
// after the socket is gone, so no two daemons ever judge or replace the same path at once.
type socket struct {
	net.Listener

	path string
	info fs.FileInfo // of the socket that we made
	lock *os.File
}

// listen makes the socket that a key of the configuration asks for, and its directory (0700) if that is missing; one that other users
// may put a socket of theirs into is an error. A socket that
// nobody listens on any more is replaced. A living one, or anything that is not a socket, is errInUse or another error and
// stays as it is.
//
// The socket is 0600 from its first instant.
func listen(ctx context.Context, key, path string) (_ *socket, err error) {
	if err := validateAddress(key, path); err != nil {
		return nil, err
	}
	if err := makeSocketDir(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	lock, err := lockFile(path + ".lock")
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.Close())
		}
	}()
	if err := removeStale(ctx, path); err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	l, err := bind(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	info, err := os.Lstat(path)
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &socket{Listener: l, path: path, info: info, lock: lock}, nil
}

// inUse gives errInUse to the error of a bind that found the address taken.
func inUse(err error) error {
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("%w: %w", errInUse, err)
	}
	return err
}

func makeSocketDir(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	// Who speaks to a socket there speaks to whom any user likes. Root's own group is none of the others.
	others := fs.FileMode(0o022)
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Gid == 0 {
		others = 0o002
	}
	if info.Mode()&others != 0 && info.Mode()&fs.ModeSticky == 0 {
		return fmt.Errorf("other users may write to %s (its mode is %04o) and put a socket of their own there: take that away with chmod go-w, or choose another directory",
			dir, info.Mode().Perm())
	}
	return nil
}

// lockFile takes an exclusive lock on path without waiting. The file is never removed: a lock on a file that is gone
// would let a second daemon in.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fmt.Errorf("another daemon holds the lock: %w", errInUse)
	}
	if err != nil {
		return nil, errors.Join(&fs.PathError{Op: "flock", Path: path, Err: err}, f.Close())
	}
	return f, nil
}

// removeStale makes room for our socket. Only a refused connection proves that nobody listens: a full backlog, say, is
// a living daemon's.
func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is no socket and is left alone: %w", path, fs.ErrExist)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != os.Geteuid() { // in a directory that many write to
		return fmt.Errorf("%s is a socket of user %d and is left alone: remove it, or choose another path: %w", path, st.Uid, fs.ErrExist)
	}
	dialer := net.Dialer{Timeout: time.Second}
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err == nil {
		return errors.Join(fmt.Errorf("another daemon listens on %s: %w", path, errInUse), conn.Close())
	}
	if errors.Is(err, unix.ECONNREFUSED) {
		return os.Remove(path)
	}
	return fmt.Errorf("is %s a living daemon's? %w", path, err)
}

// bind sets the mode on the socket before it has a name. Linux gives the file that mode less the umask (unix_bind in
// net/unix/af_unix.c), so nobody can connect in between, as they could with a chmod afterwards, and no other goroutine's
// files get a umask meant for this one.
func bind(ctx context.Context, path string) (net.Listener, error) {
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var chmodErr error
		err := c.Control(func(fd uintptr) { chmodErr = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, chmodErr)
	}}
	l, err := config.Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	// The listener is closed first of all at the stop; the socket goes last, in release.
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	return l, nil
}

// release removes the socket, if the one at the path is still ours, and gives up the lock. The listener is closed
// already, or is closed here.
func (s *socket) release() error {
	err := s.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	info, statErr := os.Lstat(s.path)
	if statErr == nil && os.SameFile(info, s.info) {
		err = errors.Join(err, os.Remove(s.path))
	}
	return errors.Join(err, s.lock.Close())
}
