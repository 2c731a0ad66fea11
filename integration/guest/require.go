package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"
)

// HaveDeviceMapper reports whether the running kernel has device mapper with
// thin provisioning. It loads their modules where they are not built in.
func HaveDeviceMapper(ctx context.Context) bool {
	// modprobe finds out about kernels whose modules are all built in, and
	// says nothing more than the files below do.
	_ = exec.CommandContext(ctx, "modprobe", "-q", "dm-thin-pool").Run()
	misc, err := os.ReadFile("/proc/misc")
	if err != nil || !bytes.Contains(misc, []byte(" device-mapper\n")) {
		return false
	}
	_, err = os.Stat("/sys/module/dm_thin_pool")
	return err == nil
}

// Require skips a test that needs root and device mapper where one is missing.
// If LAMINA_TEST_ROOT=1 says that it must run, it fails.
func Require(tb testing.TB) {
	tb.Helper()
	refuse(tb, missing(tb.Context()))
}

// RequireSELinux is Require for a test that needs a guest with SELinux ([Options.SELinux]).
func RequireSELinux(tb testing.TB) {
	tb.Helper()
	Require(tb)
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err == nil && !bytes.Contains(cmdline, []byte(SELinuxArgument)) {
		err = errors.New("this is no guest with SELinux")
	}
	refuse(tb, err)
}

func refuse(tb testing.TB, err error) {
	tb.Helper()
	switch {
	case err == nil:
	case os.Getenv(rootVariable) == "1":
		tb.Fatalf("%v, and %s=1 says that the test must run", err, rootVariable)
	default:
		tb.Skip(err)
	}
}

func missing(ctx context.Context) error {
	if os.Getuid() != 0 {
		return errors.New("needs root: it makes device-mapper devices")
	}
	if HaveDeviceMapper(ctx) {
		return nil
	}
	if err := canRun(chosen()); err != nil {
		return fmt.Errorf("this kernel has no device mapper; %w", err)
	}
	return errors.New("this kernel has no device mapper, and no guest was asked for")
}
