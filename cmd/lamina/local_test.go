package main

import (
	"io"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Who opens more connections than there may be waits, and is answered when others have gone.
func TestLocalConnections(t *testing.T) {
	s, err := openLocal(t.Context(), "metrics.address", "127.0.0.1:0", http.NotFoundHandler())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.close()) })
	ask := func() net.Conn {
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", s.address)
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		_, err = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
		require.NoError(t, err)
		return conn
	}
	answered := func(conn net.Conn, within time.Duration) error {
		require.NoError(t, conn.SetReadDeadline(time.Now().Add(within)))
		_, err := conn.Read(make([]byte, 1))
		return err
	}
	var first net.Conn
	for range localConnections {
		first = ask()
		require.NoError(t, answered(first, 30*time.Second))
	}
	more := ask()
	require.ErrorIs(t, answered(more, 200*time.Millisecond), os.ErrDeadlineExceeded)
	require.NoError(t, first.Close())
	require.NoError(t, answered(more, 30*time.Second))
}
