package dmthin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// holdVariable makes this test binary mount a device, say so, and wait to be killed.
const holdVariable = "LAMINA_TEST_HOLD_MOUNT"

func TestHoldMount(t *testing.T) {
	device := os.Getenv(holdVariable)
	if device == "" {
		t.Skip("only for TestKilledWhileMounted")
	}
	_, err := mountDetached(ext4{}, device, nil)
	fmt.Println("mounted:", err)
	time.Sleep(time.Minute)
}

// A process that is killed leaves no mount behind.
func TestKilledWhileMounted(t *testing.T) {
	p := newPool(t)
	device := p.formatted(t, testVolume, ext4{})
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestHoldMount$") // os.Args names another with -race
	cmd.Env = append(os.Environ(), holdVariable+"="+device, "LAMINA_GUEST=native")
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	var said string
	_, err = fmt.Fscanln(out, new(string), &said)
	require.NoError(t, errors.Join(err, cmd.Process.Kill()))
	require.Equal(t, "<nil>", said)
	require.Error(t, cmd.Wait())
	require.NoError(t, waitUnmounted(t.Context(), device))
	require.NoError(t, replay(t.Context(), device))
	check(t, device, ext4{})
}

// What is closed is unmounted, although children that are being started have the file open as well.
func TestCloseWhileOthersFork(t *testing.T) {
	p := newPool(t)
	device := p.formatted(t, testVolume, ext4{})
	ctx, stop := context.WithCancel(t.Context())
	var others sync.WaitGroup
	defer others.Wait()
	defer stop()
	for range 4 {
		others.Go(func() {
			for ctx.Err() == nil {
				_ = exec.Command("true").Run()
			}
		})
	}
	for range 20 {
		m, err := mountDetached(ext4{}, device, nil)
		require.NoError(t, err)
		require.ErrorIs(t, checkUnmounted(device), unix.EBUSY)
		require.NoError(t, m.close(t.Context()))
		require.NoError(t, replay(t.Context(), device))
	}
	stop()
	others.Wait()
	p.activated(t, 1, testVolume, false) // which has to deactivate it
}
