package overlayaufs

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
)

const (
	// defaultBranches is how many branches a union has at most where the module does not tell (CONFIG_AUFS_BRANCH_MAX_127).
	defaultBranches = 127

	// maxPerMount is how many branches one mount names. aufs keeps the options of a mount in a page, of 48 bytes each, a
	// branch being one (max_opt in fs/aufs/fsctx.c; before Linux 5.19 in fs/aufs/opts.c). That makes 84, and the 85th
	// crashes the kernel (tried with aufs 6.1).
	maxPerMount = 64

	// maxData is how many bytes of options mount(2) takes: a page with the NUL (copy_mount_options in fs/namespace.c), the
	// smallest page there is.
	maxData = 4095
)

// An aufs turns directories into aufs mounts: a first one, and as many that append branches to it as are needed for each
// to fit in the page that mount(2) takes.
//
// A layer below is "rr", as it never changes once it is committed, and "+wh", so that its whiteouts count.
//
// Pseudo-links stay on, as the module has them: without them (noplink) aufs fails with EIO and ENOENT to write to, to rename or
// to link a name whose hard link was copied up (tried with aufs 6.1). They end with the mount. A name that nobody has
// opened by then is the unchanged file again, as it would always be in overlayfs without an index. "auplink flush" before the
// unmount prevents that; but containerd unmounts, and knows nothing of it.
type aufs struct {
	xino     string   // where the module makes the files of its inode numbers, for all unions
	options  []string // those of every first mount, beside the ones that common adds
	branches int      // how many a union has at most
	perMount int      // how many one mount names at most
}

func (a *aufs) writable(upper, _ string, lower []string) []mount.Mount {
	return a.mounts(nil, append([]string{upper + "=rw"}, readOnlyBranches(lower)...))
}

func (a *aufs) readOnly(layers []string) []mount.Mount {
	return a.mounts([]string{"ro"}, readOnlyBranches(layers))
}

func readOnlyBranches(dirs []string) []string {
	branches := make([]string, len(dirs))
	for i, dir := range dirs {
		branches[i] = dir + "=rr+wh"
	}
	return branches
}

// common returns the options of every first mount.
func (a *aufs) common() []string {
	return slices.Concat([]string{"xino=" + a.xino, "dio"}, a.options)
}

// mounts returns the mounts of branches. The flags stand in each of them, as a remount replaces those there were.
func (a *aufs) mounts(flags, branches []string) []mount.Mount {
	first := a.common()
	n := a.fit(slices.Concat(flags, first), "br:", branches)
	mounts := []mount.Mount{aufsMount(flags, append(first, "br:"+strings.Join(branches[:n], ":")))}
	for branches = branches[n:]; len(branches) > 0; branches = branches[n:] {
		more := []string{"remount"}
		n = a.fit(slices.Concat(flags, more), "append:", branches)
		for _, branch := range branches[:n] {
			more = append(more, "append:"+branch)
		}
		mounts = append(mounts, aufsMount(flags, more))
	}
	return mounts
}

// fit returns how many of the branches, one at least, one mount can name beside these options.
func (a *aufs) fit(options []string, prefix string, branches []string) int {
	size := 0
	for _, o := range options {
		size += len(o) + len(",")
	}
	for i, branch := range branches[:min(a.perMount, len(branches))] {
		size += len(prefix) + len(branch) + len(",")
		if size > maxData && i > 0 {
			return i
		}
	}
	return min(a.perMount, len(branches))
}

func aufsMount(flags, options []string) mount.Mount {
	return mount.Mount{Type: driverAufs, Source: driverAufs, Options: slices.Concat(flags, options)}
}

func (a *aufs) checkDepth(lower int, writable bool) error {
	limit := a.branches
	if writable {
		limit--
	}
	if lower > limit {
		return fmt.Errorf("%w: aufs of this kernel stacks no more than %d layers (CONFIG_AUFS_BRANCH_MAX), and there are %d "+
			"below; overlayfs takes %d: lamina migrate --from aufs --to overlay",
			errdefs.ErrInvalidArgument, a.branches, lower, maxLower)
	}
	return nil
}
