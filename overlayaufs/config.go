package overlayaufs

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/lamina-snapshotter/lamina/internal/bytesize"
)

// The values of the settings.
const (
	auto = "auto"
	on   = "on"
	off  = "off"

	driverOverlay = "overlay"
	driverAufs    = "aufs"
	syncCommit    = "commit"
	quotaStrict   = "strict"
)

// Config says where the place is and how to use it. The zero value of each setting is its default, the first value
// named.
type Config struct {
	// Root is the directory that holds the place and nothing else: an absolute path without ":", "," and "\".
	Root string `toml:"-"`

	// Driver is "auto", "overlay" or "aufs": which union file system mounts the layers. Auto is aufs for a place whose
	// layers are written in its form, or where the kernel has no overlayfs, and overlayfs otherwise.
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

	// Volatile is "auto", "on" or "off", in TOML also true or false: whether the writable layers of containers ignore fsync;
	// those into which an image is unpacked never do. Auto is off. With on, a container that was mounted so cannot be started again after the
	// machine was started anew, not even one that was stopped in order before a shutdown in order; nor after writes failed.
	Volatile Switch `toml:"volatile"`

	// UpperdirLabel has each snapshot shown with the label containerd.io/snapshot/overlay.upperdir, the directory of what it
	// has of its own, as containerd's overlay snapshotter has it under that key. It is for programs on the host that read layers.
	UpperdirLabel bool `toml:"upperdir_label"`

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

	// Aufs counts where aufs mounts the layers; there Index, UserXattr, Metacopy and Volatile cannot be on.
	Aufs AufsConfig `toml:"aufs"`
}

// Size is a number of bytes, in a configuration a text such as "10GiB" or "auto".
type Size = bytesize.Size

// DefaultConfig returns the configuration with each default in its place.
func DefaultConfig() Config {
	return Config{
		Driver: auto, Sync: syncCommit, Index: auto, UserXattr: auto, Metacopy: auto, Volatile: auto,
		Quota: auto, ProjectBase: defaultProjectBase,
		Aufs: AufsConfig{UDBA: auto, Create: auto, Xino: auto},
	}
}

// AufsConfig is what can be set of aufs. The zero value of each setting is "auto", which leaves it to the module except
// for Xino.
type AufsConfig struct {
	// UDBA is "auto", "none", "reval" or "notify": how aufs notices that somebody changes a branch behind its back
	// (users' direct branch access). The module's own choice is reval.
	UDBA string `toml:"udba"`

	// Create is "auto", "tdp", "rr", "mfs" or "pmfs": on which writable branch a new file is made. A union of Lamina's
	// has one writable branch.
	Create string `toml:"create"`

	// Xino is the absolute path of the directory in which aufs makes the files of its inode numbers, which have no name
	// as soon as they are made. Auto is Config.Root, or /run/lamina if Root lies on a file system that cannot have them,
	// as xfs and btrfs. Whoever mounts must see it under the same path.
	Xino string `toml:"xino"`
}

// A Switch is "auto", "on" or "off".
type Switch string

// UnmarshalText takes a text as it is, and what TOML has for on and off.
func (s *Switch) UnmarshalText(text []byte) error {
	switch *s = Switch(text); *s {
	case "true":
		*s = on
	case "false":
		*s = off
	}
	return nil
}

// A setting is one key of the config with its value and the values it may have, the default first.
type setting struct {
	key, value string
	possible   []string
}

func (c Config) settings() []setting {
	return []setting{
		{"driver", c.Driver, []string{auto, driverOverlay, driverAufs}},
		{"sync", c.Sync, []string{syncCommit, off}},
		{"index", c.Index, []string{auto, on, off}},
		{"userxattr", c.UserXattr, []string{auto, on, off}},
		{"metacopy", c.Metacopy, []string{auto, on, off}},
		{"volatile", string(c.Volatile), []string{auto, on, off}},
		{"quota", c.Quota, []string{auto, on, quotaStrict, off}},
		{"aufs.udba", c.Aufs.UDBA, []string{auto, "none", "reval", "notify"}},
		{"aufs.create", c.Aufs.Create, []string{auto, "tdp", "rr", "mfs", "pmfs"}},
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
	if c.Driver == driverAufs {
		errs = append(errs, c.checkAufs())
	}
	if x := c.Aufs.Xino; isSet(x) && (!filepath.IsAbs(x) || strings.ContainsFunc(x, func(r rune) bool { return r == ',' || unicode.IsControl(r) })) {
		errs = append(errs, fmt.Errorf("union.aufs.xino = %q: must be %q or an absolute path without a comma or a control character", x, auto))
	}
	return errors.Join(errs...)
}

// isSet reports whether a setting is left to this machine.
func isSet(value string) bool { return value != "" && value != auto }

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
