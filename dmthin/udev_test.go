package dmthin

import (
	"context"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/integration/guest"
)

// udevd is Debian's.
const udevd = "/lib/systemd/systemd-udevd"

// startUdevd starts udevd until the end of the test, unless one runs.
func startUdevd(t *testing.T) {
	t.Helper()
	if _, err := os.Stat("/run/udev/control"); err == nil {
		return
	}
	out, err := exec.CommandContext(t.Context(), udevd, "--daemon").CombinedOutput()
	require.NoError(t, err, "%s: integration/setup packages installs it", out)
	t.Cleanup(func() {
		out, err := exec.CommandContext(context.Background(), "udevadm", "control", "--exit", "--timeout=30").CombinedOutput()
		require.NoError(t, err, "%s", out)
	})
}

// udevd is behind with its events. If the nodes were its, the removal of one volume would take that of the next with its number.
func TestNodesBesideUdevd(t *testing.T) {
	guest.Require(t)
	startUdevd(t)
	p := newPool(t)
	for id := range uint32(2) {
		require.NoError(t, p.Create(t.Context(), id))
	}
	_, err := p.Activate(t.Context(), 0, testVolume, false)
	require.NoError(t, err)
	_, err = p.Deactivate(t.Context(), 0)
	require.NoError(t, err)
	path, err := p.Activate(t.Context(), 1, testVolume, false)
	require.NoError(t, err)
	settled := make(chan error, 1)
	go func() { settled <- exec.CommandContext(t.Context(), "udevadm", "settle", "--timeout=30").Run() }()
	for looks := 0; ; looks++ {
		_, err := os.Stat(path)
		require.NoError(t, err, "at look %d", looks)
		select {
		case err := <-settled:
			require.NoError(t, err)
			return
		case <-time.After(time.Millisecond):
		}
	}
}
