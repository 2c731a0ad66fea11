package overlayaufs

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
)

// An overlay turns directories into overlayfs mounts.
//
// containerd looks for the directories in the options: each of workdir=, upperdir= and lowerdir= is an element of its
// own, and a lowerdir= begins each directory with the same path, which containerd enters before it mounts so that
// the options fit in the one page that mount(2) takes. That makes about 300 layers of the 500 that overlayfs can stack;
// those of a longer chain have short names, see lowerName.
type overlay struct {
	options  []string // those of every mount
	volatile bool     // writable mounts are
}

// writable returns the mount of upper on top of the lower directories, the topmost first.
func (o overlay) writable(upper, work string, lower []string) []mount.Mount {
	if o.volatile {
		o.options = append(o.options[:len(o.options):len(o.options)], "volatile")
	}
	return o.mount("workdir="+work, "upperdir="+upper, "lowerdir="+strings.Join(lower, ":"))
}

// readOnly returns the mount of two or more directories, the topmost first.
func (o overlay) readOnly(lower []string) []mount.Mount {
	return o.mount("lowerdir=" + strings.Join(lower, ":"))
}

func (o overlay) mount(dirs ...string) []mount.Mount {
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: slices.Concat(o.options, dirs)}}
}

func (overlay) checkDepth(lower int, _ bool) error {
	if lower > maxLower {
		return fmt.Errorf("%w: overlayfs stacks no more than %d layers, and there are %d below",
			errdefs.ErrInvalidArgument, maxLower, lower)
	}
	return nil
}
