package guest

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const (
	// kernelVariable names a directory with boot/vmlinuz-VERSION and
	// lib/modules/VERSION, to take the place of the one in kernelCache.
	kernelVariable = "LAMINA_GUEST_KERNEL"

	// kernelCache is where integration/setup puts Debian's kernel.
	kernelCache = ".cache/guest-kernel"
)

// A kernel is one from a package, unpacked.
type kernel struct {
	Image   string // its file
	Modules string // directory lib/modules/VERSION
}

// findKernel returns the kernel of kernelVariable, or of the nearest directory
// above the working directory that has one.
func findKernel() (kernel, error) {
	if dir := os.Getenv(kernelVariable); dir != "" {
		return openKernel(dir)
	}
	wd, err := os.Getwd()
	if err != nil {
		return kernel{}, err
	}
	for d := wd; ; d = filepath.Dir(d) {
		if dir := filepath.Join(d, kernelCache); isDir(dir) {
			return openKernel(dir)
		}
		if d == filepath.Dir(d) {
			return kernel{}, fmt.Errorf("a guest in QEMU needs a kernel in %s of a directory above: run integration/setup guest-qemu", kernelCache)
		}
	}
}

// openKernel takes the kernel in dir whose name sorts last.
func openKernel(dir string) (kernel, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return kernel{}, err
	}
	images, err := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	if err != nil {
		return kernel{}, err
	}
	if len(images) == 0 {
		return kernel{}, fmt.Errorf("no kernel in %s", filepath.Join(dir, "boot"))
	}
	image := slices.Max(images)
	_, version, _ := strings.Cut(filepath.Base(image), "-")
	k := kernel{Image: image, Modules: filepath.Join(dir, "lib", "modules", version)}
	if _, err := os.Stat(filepath.Join(k.Modules, "modules.dep")); err != nil {
		return kernel{}, fmt.Errorf("%w: make it with depmod", err)
	}
	return k, nil
}

func isDir(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.IsDir()
}

// order returns the files of modules and of those that they need, in the order
// in which they can be loaded.
func (k kernel) order(names ...string) (files []string, err error) {
	needs, err := k.dependencies()
	if err != nil {
		return nil, err
	}
	builtin, err := os.ReadFile(filepath.Join(k.Modules, "modules.builtin"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	for _, name := range names {
		list, ok := needs[name]
		if !ok && !strings.Contains(string(builtin), "/"+name+".ko\n") {
			return nil, fmt.Errorf("the kernel has no module %s: %s", name, k.Modules)
		}
		for _, file := range slices.Backward(list) {
			if file = filepath.Join(k.Modules, file); !slices.Contains(files, file) {
				files = append(files, file)
			}
		}
	}
	return files, nil
}

// dependencies returns for each module its file and those that it needs, with
// the one to be loaded first at the end: a line of modules.dep(5).
func (k kernel) dependencies() (map[string][]string, error) {
	f, err := os.Open(filepath.Join(k.Modules, "modules.dep"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	needs := map[string][]string{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		file, rest, _ := strings.Cut(lines.Text(), ":")
		name, _, _ := strings.Cut(filepath.Base(file), ".")
		needs[name] = append([]string{file}, strings.Fields(rest)...)
	}
	return needs, lines.Err()
}
