package kubernetes

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// enter gives this process, the first of its namespaces, directories of its own where a node has those of containerd and
// Lamina. Those on a disk lie in dir.
func enter(dir string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	state, etc, opt := filepath.Join(dir, "lib"), filepath.Join(dir, "etc"), filepath.Join(dir, "opt")
	err := errors.Join(
		os.Mkdir(state, 0o755),
		os.Mkdir(opt, 0o755),
		copyEtc(etc),
		unix.Mount("proc", "/proc", "proc", 0, ""),
		unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"),
		unix.Mount(state, "/var/lib", "", unix.MS_BIND, ""),
		unix.Mount(etc, "/etc", "", unix.MS_BIND, ""),
		unix.Mount(opt, "/opt", "", unix.MS_BIND, ""),
	)
	return err
}

// copyEtc copies the plain files at the top of /etc: programs find libraries and users by them, pods their hosts.
func copyEtc(to string) error {
	if err := os.Mkdir(to, 0o755); err != nil {
		return err
	}
	entries, err := os.ReadDir("/etc")
	if err != nil {
		return err
	}
	for _, e := range entries {
		from := filepath.Join("/etc", e.Name())
		info, err := os.Stat(from) // of what a link leads to
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		content, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(filepath.Join(to, e.Name()), content, info.Mode())
		}
		if err != nil {
			return err
		}
	}
	for _, name := range []string{"resolv.conf", "hosts", "hostname"} {
		f, err := os.OpenFile(filepath.Join(to, name), os.O_CREATE|os.O_RDONLY, 0o644)
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}
