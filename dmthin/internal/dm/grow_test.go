package dm

import (
	"os"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The numbers of the kernel's headers; that it takes them for what they are is shown by TestGrow of dmthin.
func TestGrowRequests(t *testing.T) {
	if unsafe.Sizeof(xfsGrowData{}) != 16 || unsafe.Offsetof(xfsGrowData{}.imaxPct) != 8 {
		t.Error("xfsGrowData is not struct xfs_growfs_data")
	}
	switch runtime.GOARCH {
	case "ppc64", "ppc64le", "mips", "mipsle", "mips64", "mips64le", "sparc64":
		if ext4IocResizeFS != 0x80086610 || xfsIocFSGrowFSData != 0x8010586e {
			t.Errorf("%#x, %#x", uint(ext4IocResizeFS), uint(xfsIocFSGrowFSData))
		}
	default:
		if ext4IocResizeFS != 0x40086610 || xfsIocFSGrowFSData != 0x4010586e {
			t.Errorf("%#x, %#x", uint(ext4IocResizeFS), uint(xfsIocFSGrowFSData))
		}
	}
}

// A file system that knows no such request says so.
func TestGrowOfAnother(t *testing.T) {
	root, err := os.Open("/proc")
	mustDo(t, err)
	defer root.Close()
	wantErrno(t, GrowExt4(root, 1), unix.ENOTTY)
	wantErrno(t, GrowXFS(root, 1, 25), unix.ENOTTY)
}
