package guest

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// tKernel makes what openKernel wants of an unpacked package.
func tKernel(t *testing.T, versions ...string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, v := range versions {
		for name, content := range map[string]string{
			"boot/vmlinuz-" + v: "",
			"lib/modules/" + v + "/modules.dep": "kernel/a.ko:\nkernel/b.ko.xz: kernel/a.ko\n" +
				"kernel/c.ko: kernel/b.ko.xz kernel/a.ko\nkernel/d.ko: kernel/a.ko\n",
			"lib/modules/" + v + "/modules.builtin": "kernel/e.ko\n",
		} {
			name = filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

func TestKernelOrder(t *testing.T) {
	dir := tKernel(t, "6.1.0-9-amd64")
	t.Setenv(kernelVariable, dir)
	k, err := findKernel()
	if err != nil {
		t.Fatal(err)
	}
	got, err := k.order("c", "e", "d")
	for i := range got {
		got[i] = strings.TrimPrefix(got[i], filepath.Join(dir, "lib/modules/6.1.0-9-amd64")+"/")
	}
	if want := []string{"kernel/a.ko", "kernel/b.ko.xz", "kernel/c.ko", "kernel/d.ko"}; !slices.Equal(got, want) || err != nil {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	if _, err := k.order("f"); err == nil {
		t.Error("a module that is not there is no error")
	}
}

func TestFindKernel(t *testing.T) {
	root := t.TempDir()
	t.Chdir(root)
	if k, err := findKernel(); err == nil {
		t.Skip("above the directory of temporary files there is a kernel: ", k)
	}
	if err := os.MkdirAll("below/here", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Dir(kernelCache), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tKernel(t, "5.10", "6.12"), kernelCache); err != nil {
		t.Fatal(err)
	}
	t.Chdir("below/here")
	want := filepath.Join(root, kernelCache, "boot", "vmlinuz-6.12")
	if k, err := findKernel(); err != nil || k.Image != want {
		t.Errorf("got %v, %v, want %s", k, err, want)
	}
}
