package dm

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestKernelLinear has a device of parts of two others, and looks at one of them through it.
func TestKernelLinear(t *testing.T) {
	c := tDM(t)
	first, second := tLoop(t, 1<<20), tLoop(t, 1<<20)
	targets := []Target{Linear{Dev: second, Offset: 1024}.Target(0, 512), Linear{Dev: first, Offset: 8}.Target(512, 128)}
	whole := tActive(t, c, false, targets...)
	if got, err := c.Table(whole.Name); err != nil || !slices.Equal(got, targets) {
		t.Errorf("%v, %v", got, err)
	}
	part := tActive(t, c, false, Linear{Dev: whole.Dev, Offset: 512}.Target(0, 128))
	tRun(t, "sh", "-c", "printf hello | dd conv=fsync status=none of="+Node(part.Name))
	got := tRun(t, "dd", "status=none", "bs=512", "skip=8", "count=1", fmt.Sprintf("if=/dev/loop%d", first.Minor))
	if !strings.HasPrefix(got, "hello\x00") {
		t.Errorf("%q", got)
	}
	beyond := tDevice(t, c, "")
	wantErrno(t, c.Load(beyond.Name, false, Linear{Dev: first, Offset: 2047}.Target(0, 8)), unix.EINVAL)
}
