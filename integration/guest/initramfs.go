package guest

import (
	"bufio"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// rootModules is what a guest needs to see the host's files and to report.
// Everything else is loaded from there.
var rootModules = []string{"virtio_pci", "virtio_console", "virtio_blk", "9pnet_virtio", "9p"}

// The directories of an initramfs.
const (
	initModules = "/modules" // in the order of their names
	initRoot    = "/root"    // where the host's files are mounted
)

// makeInitramfs writes to name the file system that a guest has at first: the
// program that becomes process 1, with the libraries that it needs, and
// rootModules.
func makeInitramfs(ctx context.Context, s *spec, name string) error {
	files, err := s.Kernel.order(rootModules...)
	if err != nil {
		return err
	}
	libraries, err := sharedLibraries(ctx, s.Init)
	if err != nil {
		return err
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	c := newCPIO(w)
	c.dir(initRoot)
	c.dir("/proc")
	c.device("/dev/console", unix.Mkdev(5, 1))
	c.copyFile("/init", s.Init)
	for _, l := range libraries {
		c.copyFile(l, l)
	}
	for i, m := range files {
		c.copyFile(fmt.Sprintf("%s/%03d-%s", initModules, i, filepath.Base(m)), m)
	}
	return errors.Join(c.close(), w.Flush(), f.Close())
}

// sharedLibraries returns what a program needs to be loaded. A test with the
// race detector needs libc, others nothing.
func sharedLibraries(ctx context.Context, program string) ([]string, error) {
	f, err := elf.Open(program)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		data, err := io.ReadAll(p.Open())
		if err != nil {
			return nil, err
		}
		return listLibraries(ctx, strings.TrimRight(string(data), "\x00"), program)
	}
	return nil, nil
}

// listLibraries asks the dynamic linker, as ldd does.
func listLibraries(ctx context.Context, linker, program string) ([]string, error) {
	out, err := exec.CommandContext(ctx, linker, "--list", program).Output()
	if err != nil {
		return nil, fmt.Errorf("%s --list %s: %w", linker, program, err)
	}
	files := []string{linker}
	for line := range strings.Lines(string(out)) { // name => file (address)
		if _, file, ok := strings.Cut(line, " => "); ok {
			file, _, _ = strings.Cut(file, " (")
			files = append(files, file)
		}
	}
	return files, nil
}
