package overlayaufs

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lamina-snapshotter/lamina/internal/bytesize"
)

// The values of the settings.
const (
	auto = "auto"
	on   = "on"
	off  = "off"

	driverOverlay = "overlay"
	syncCommit    = "commit"
	quotaStrict   = "strict"
)

// Config says where the place is and how to use it. The zero value of each setting is its default, the first value
// named.
type Config struct {
	// Root is the directory that holds the place and nothing else: an absolute path without ":", "," and "\".
	Root string `toml:"-"`

	// Driver is "auto" or "overlay": which union file system mounts the layers.
	Driver string `toml:"driver"`

	// Sync is "commit", so that a committed layer survives a power cut, or "off".
	Sync string `toml:"sync"`

	// Index is "auto", "on" or "off": whether overlayfs keeps hard links together when it copies a file up. Auto is off,
	// because the index ties a layer to the identity of those below it.
	Index string `toml:"index"`

	// UserXattr is "auto", "on" or "off": whether overlayfs marks directories with user.overlay attributes rather than
	// trusted.overlay ones. Auto is on only where overlayfs does not work otherwise, as in a user namespace. A place
	// with layers cannot change it: layers written one way are read wrongly the other way.
	UserXattr string `toml:"userxattr"`

	// Metacopy is "auto", "on" or "off": whether overlayfs copies up only the metadata when that alone changes. Auto is
	// off, because a committed layer would then refer to the data of those below it; so a place whose layers were
	// written with it cannot go back.
	Metacopy string `toml:"metacopy"`

	// Volatile is "auto", "on" or "off": whether the writable layers of containers ignore fsync. Auto is off. With on, a
	// container that was running when the power went cannot be started again.
	Volatile string `toml:"volatile"`

	// Quota is "auto", "on", "strict" or "off": whether each layer is a project of the file system's quotas, which counts what
	// it takes up and keeps the limits that its labels ask for. Auto is on where the file system has project quotas; where it has
	// none, a limit that is asked for is said to be missing, once. With strict such a snapshot is refused, with on the start is.
	Quota string `toml:"quota"`

	// ProjectBase is the first project id that a layer may have; those after it are too, 2^24 in all. Projects of others are passed
	// over if they have anything in them.
	ProjectBase uint32 `toml:"project_base"`

	// MaxSize is how much a container can write unless the label containerd.io/snapshot/max-size says otherwise. "auto" is no
	// limit, and so is what it is for layers that are being unpacked.
	MaxSize Size `toml:"max_size"`
}

// Size is a number of bytes, in a configuration a text such as "10GiB" or "auto".
type Size = bytesize.Size

// DefaultConfig returns the configuration with each default in its place.
func DefaultConfig() Config {
	return Config{
		Driver: auto, Sync: syncCommit, Index: auto, UserXattr: auto, Metacopy: auto, Volatile: auto,
		Quota: auto, ProjectBase: defaultProjectBase,
	}
}

// A setting is one key of the config with its value and the values it may have, the default first.
type setting struct {
	key, value string
	possible   []string
}

func (c Config) settings() []setting {
	return []setting{
		{"driver", c.Driver, []string{auto, driverOverlay}},
		{"sync", c.Sync, []string{syncCommit, off}},
		{"index", c.Index, []string{auto, on, off}},
		{"userxattr", c.UserXattr, []string{auto, on, off}},
		{"metacopy", c.Metacopy, []string{auto, on, off}},
		{"volatile", c.Volatile, []string{auto, on, off}},
		{"quota", c.Quota, []string{auto, on, quotaStrict, off}},
	}
}

// Validate returns an error that names every setting with an impossible value. It looks at the values alone, not at this
// machine.
func (c Config) Validate() error {
	var errs []error
	for _, s := range c.settings() {
		if s.value != "" && !slices.Contains(s.possible, s.value) {
			errs = append(errs, fmt.Errorf("union.%s = %q: must be one of %q", s.key, s.value, s.possible))
		}
	}
	if c.ProjectBase > maxProjectBase {
		errs = append(errs, fmt.Errorf("union.project_base = %d: must be at most %d, as projects are %d after each other",
			c.ProjectBase, maxProjectBase, projectRange))
	}
	return errors.Join(errs...)
}

// checkRoot refuses a root that cannot be written into mount options: the kernel takes a comma for the end of an
// option, a colon for the end of a lower directory and a backslash for an escape, and containerd splits at colons
// without regard to escapes.
func (c Config) checkRoot() error {
	if !filepath.IsAbs(c.Root) || filepath.Clean(c.Root) == "/" {
		return fmt.Errorf("union root %q: must be the absolute path of a directory", c.Root)
	}
	if i := strings.IndexAny(c.Root, `:,\`); i >= 0 {
		return fmt.Errorf("union root %q: a path with %q in it cannot be given to overlayfs", c.Root, c.Root[i])
	}
	return nil
}
