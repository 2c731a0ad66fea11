package overlayaufs

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// forLayers returns the settings with the driver that reads layers of a form, or an error if they name another one:
// overlayfs would show what a .wh. file deletes, and aufs what a character device 0:0 does.
func (c Config) forLayers(f form) (Config, error) {
	if !isSet(c.Driver) {
		c.Driver = f.String()
	}
	if c.Driver != f.String() {
		return c, fmt.Errorf("union.driver = %q: the layers in %s are written in the form of %s, and would be read wrongly: "+
			"set it to %q or %q, or translate them with: lamina migrate --from %[3]s --to %[1]s",
			c.Driver, c.Root, f, f.String(), auto)
	}
	return c, nil
}

// checkAufs returns an error that names the settings of overlayfs that are on.
func (c Config) checkAufs() error {
	var errs []error
	for _, s := range []setting{
		{key: "index", value: c.Index},
		{key: "userxattr", value: c.UserXattr},
		{key: "metacopy", value: c.Metacopy},
		{key: "volatile", value: string(c.Volatile)},
	} {
		if s.value == on {
			errs = append(errs, fmt.Errorf("union.%s = %q: aufs has no such option; set it to %q, or union.driver to %q",
				s.key, on, auto, driverOverlay))
		}
	}
	return errors.Join(errs...)
}

// noAufs says what an error means that ends with errno ENODEV.
func noAufs(err error) error {
	return fmt.Errorf("union: this kernel (%s) has no aufs, which is no part of Linux: it comes as a module of some "+
		"distributions (aufs-dkms), or in a kernel built with github.com/sfjro/aufs-standalone. Overlayfs needs neither: "+
		"union.driver = %q takes it for a new root, and lamina migrate --from aufs --to overlay translates the layers of "+
		"an old one: %w", release(), auto, err)
}

// isMissing reports whether an error says that the kernel does not know a file system.
func isMissing(err error) bool { return errors.Is(err, unix.ENODEV) }
