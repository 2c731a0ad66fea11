package admin

import (
	"context"
	"fmt"
	"net"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// A peer is the process at the other end of a connection, as it was when it connected.
type peer struct {
	pid int32
	uid uint32
	err error
}

type peerKey struct{}

// withPeer keeps in ctx who is at the other end of a unix connection.
func withPeer(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, peerKey{}, peerOf(conn))
}

func peerOf(conn net.Conn) peer {
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return peer{err: fmt.Errorf("%T tells of no process", conn)}
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return peer{err: err}
	}
	var p peer
	if err := raw.Control(func(fd uintptr) {
		var cred *unix.Ucred
		if cred, p.err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); p.err == nil {
			p.pid, p.uid = cred.Pid, cred.Uid
		}
	}); err != nil {
		p.err = err
	}
	return p
}

// allowed returns who asks, or ErrPermissionDenied if that is neither root nor the user of this process: the socket's mode keeps
// others out already, unless somebody has changed it. In a user namespace root is the namespace's, and of any other the kernel
// tells the overflow id.
func allowed(ctx context.Context) (peer, error) {
	p, ok := ctx.Value(peerKey{}).(peer)
	if !ok {
		return p, fmt.Errorf("nothing is known of who asks: %w", errdefs.ErrPermissionDenied)
	}
	if p.err != nil {
		return p, fmt.Errorf("who asks: %w: %w", p.err, errdefs.ErrPermissionDenied)
	}
	if p.uid != 0 && int(p.uid) != os.Geteuid() {
		return p, fmt.Errorf("user %d may not ask, only root: %w", p.uid, errdefs.ErrPermissionDenied)
	}
	return p, nil
}
