package overlayaufs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/internal/failpoint"
	"github.com/lamina-snapshotter/lamina/overlayaufs/internal/quota"
)

// LabelMaxInodes is the label that says how many inodes a container may have on the union backend: files, directories, and what
// else has a name of its own. It is named so that containerd hands it on to snapshotters.
const LabelMaxInodes = "containerd.io/snapshot/lamina.max-inodes"

const (
	// projectRange is how many project ids are taken for layers: more than there can be, as those of deleted ones are given again.
	projectRange = 1 << 24

	// defaultProjectBase is far from where others begin: docker and podman at 1 or the root's own plus 1, the kubelet at 2^20+1.
	defaultProjectBase = 1 << 30

	maxProjectBase = 1<<32 - 1 - projectRange // 2^32-1 is no project id

	maxLimit = 1 << 60 // less than what any file system keeps, in bytes or inodes
)

// projects is what the file system of the root does with projects.
type projects struct {
	quota.State
	fs      quota.FileSystem
	missing string // why limits cannot be had, and what would give them; "" if they can
	off     bool   // new contents are in no project, and none is bounded; those that are in one stay there
	first   uint32

	strict  bool
	maxSize uint64    // of containers without a label, in bytes; 0 for no limit
	said    sync.Once // that there are no limits

	// tolerated has the limits that contents which are there already ask for and go without, by content, with strict: what is not
	// in it is new, as the start calls Mounts for all that there are.
	tolerated sync.Map
}

// findProjects finds out what the file system does with projects, and refuses one that does not do what must be.
func (b *Backend) findProjects(cfg Config) error {
	b.askProjects(cfg)
	if b.projects.missing != "" && cfg.Quota == on {
		return fmt.Errorf(`union.quota = "on": %s: %w`, b.projects.missing, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// askProjects asks the file system what it does with projects.
func (b *Backend) askProjects(cfg Config) {
	p := &b.projects
	p.first, p.maxSize = cmp.Or(cfg.ProjectBase, defaultProjectBase), uint64(cfg.MaxSize)
	p.strict, p.off = cfg.Quota == quotaStrict, cfg.Quota == off
	err := b.onRoot("quota", func(fd int) (err error) {
		p.fs, p.State, err = quota.Find(fd)
		return err
	})
	if err != nil {
		p.State = quota.State{}
	}
	p.missing = missingQuota(b.root, fsType(b.root), p.State, err)
	if p.off {
		p.missing = `union.quota is "off"`
	}
}

// missingQuota says what a root lacks to bound layers, and how to have it; "" if it lacks nothing.
func missingQuota(root, fsType string, state quota.State, err error) string {
	switch {
	case errors.Is(err, unix.EPERM):
		return "to ask for project quotas needs CAP_SYS_ADMIN outside of any user namespace"
	case err != nil:
		return fmt.Sprintf("whether %s has project quotas is not known: %v", root, err)
	case state.Enforced:
		return ""
	case fsType == "ext4" && state.Counted:
		return fmt.Sprintf("the ext4 file system of %s is mounted without the option prjquota", root)
	case fsType == "ext4":
		return fmt.Sprintf("the ext4 file system of %s has no project quotas: unmount it, tune2fs -O project,quota on its device "+
			"(or mkfs.ext4 -O project,quota), and mount it with the option prjquota; the kernel needs the module quota_v2", root)
	case fsType == "xfs":
		return fmt.Sprintf("the xfs file system of %s is mounted without the option pquota (for the root file system the kernel "+
			"takes rootflags=pquota); a remount does not set it", root)
	}
	return fmt.Sprintf("%s, which %s is on, has no project quotas: ext4 and xfs have", fsType, root)
}

// Quotas says in words what the root does with project quotas, for the log.
func (b *Backend) Quotas() string {
	switch {
	case b.projects.missing == "":
		return "layers are counted and bounded"
	case b.projects.Counted && !b.projects.off:
		return "layers are counted, and not bounded: " + b.projects.missing
	}
	return "none: " + b.projects.missing
}

// Projects returns the first and the last project id that new contents may have; 0, 0 where the file system does not count them, or
// is not asked to.
func (b *Backend) Projects() (first, last uint32) {
	if !b.projects.Counted || b.projects.off {
		return 0, 0
	}
	return b.projects.first, b.projects.last()
}

func (p *projects) last() uint32 { return p.first + projectRange - 1 }

// ProjectTaken reports whether something is in a project, or it has limits.
func (b *Backend) ProjectTaken(project uint32) (bool, error) {
	count, err := b.count(project)
	return count != quota.Count{}, err
}

func (b *Backend) count(project uint32) (count quota.Count, err error) {
	err = b.onRoot("quota", func(fd int) error {
		count, err = b.projects.fs.Count(fd, project)
		return err
	})
	return count, err
}

// join puts the new directory of a content into its project, if it has one, and bounds that.
func (b *Backend) join(c Content, limits quota.Limits) error {
	if c.Project == 0 {
		return nil
	}
	if err := onDir(b.path(c.ID), func(fd int) error { return quota.SetProject(fd, c.Project) }); err != nil {
		return fmt.Errorf("put %s into project %d: %w", b.path(c.ID), c.Project, err)
	}
	failpoint.Hit("union.project-joined")
	return b.bound(c.Project, withRoom(limits, quota.Count{})) // so that there is room to make it, and for its first mount
}

// bound gives a project these limits, unless it has them. It does nothing where there is no project, or no quotas now.
func (b *Backend) bound(project uint32, limits quota.Limits) error {
	if project == 0 || !b.projects.Counted {
		return nil
	}
	count, err := b.count(project)
	if err != nil || count.Limits == limits {
		return err
	}
	err = b.onRoot("quota", func(fd int) error { return b.projects.fs.SetLimits(fd, project, limits) })
	if err == nil {
		failpoint.Hit("union.project-bounded")
	}
	return err
}

// settle has the file system count what is in a project as it is now.
func (b *Backend) settle(project uint32) error {
	if project == 0 || !b.projects.Counted {
		return nil
	}
	return b.onRoot("quota", func(fd int) error { return quota.Settle(fd, project) })
}

// release lifts the limits of a content's project, which it tells from the directory if the content has no record, and returns it.
// Only a project of ours may be told so: the root itself may be in one of somebody else's.
func (b *Backend) release(c Content) (project uint32, err error) {
	p := &b.projects
	if project = c.Project; project == 0 && p.Counted {
		project, err = b.projectOf(strconv.FormatUint(c.ID, 10))
		if isGone(err) || err == nil && (project < p.first || project > p.last()) {
			return 0, nil
		}
		if errors.Is(err, unix.EXDEV) { // something is mounted on it
			err = unix.EBUSY
		}
	}
	if err != nil {
		return 0, err
	}
	return project, b.bound(project, quota.Limits{})
}

// projectOf returns the project of a directory below the root.
func (b *Backend) projectOf(name string) (project uint32, err error) {
	err = b.onRoot("quota", func(root int) error {
		fd, err := openDir(root, name)
		if err != nil {
			return err
		}
		defer unix.Close(fd) //nolint:errcheck // nothing was written through it
		project, err = quota.Project(fd)
		return err
	})
	return project, err
}

// Resize gives content c the limits that its new labels ask for. The size is 0, as a directory has none.
//
// At return they are kept, and not synced. A power cut may undo them, or keep them while the labels are not recorded: the next start
// gives each active content the limits of its labels, by Mounts, before it serves.
func (b *Backend) Resize(ctx context.Context, c Content, _ []Content, labels map[string]string) (size uint64, err error) {
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("resize %s: %w", b.path(c.ID), err)
	}
	limits, err := b.limitsFor(ctx, c, labels)
	if err == nil {
		err = b.bound(c.Project, withRoom(limits, quota.Count{})) // as Make: there is room for a first mount
	}
	if err != nil {
		return 0, fmt.Errorf("resize %s: %w", b.path(c.ID), err)
	}
	return 0, nil
}

// correctLimits gives a content that is to be mounted the limits of its labels. Labels that ask for what cannot be had are for Make
// and Resize to refuse: a container that has been made can be started.
func (b *Backend) correctLimits(chain []Content, labels map[string]string) error {
	c := chain[0]
	if c.Project == 0 || !b.projects.off && b.projects.missing != "" {
		return nil
	}
	limits, err := b.limitsOf(labels)
	switch {
	case b.projects.off:
		err = b.bound(c.Project, quota.Limits{})
	case err == nil:
		err = b.boundForMount(c, limits, len(chain) == 1)
	}
	if err != nil {
		return fmt.Errorf("limits of %s: %w", b.path(c.ID), err)
	}
	return nil
}

// limitsFor returns the limits that labels ask for a content, or none where they cannot be had: that is an error with
// union.quota = "strict", unless it went without them before, and a warning otherwise, once.
func (b *Backend) limitsFor(ctx context.Context, c Content, labels map[string]string) (quota.Limits, error) {
	limits, err := b.limitsOf(labels)
	if err != nil {
		return limits, err
	}
	if limits == (quota.Limits{}) {
		b.projects.tolerated.Delete(c.ID)
		return limits, nil
	}
	missing := b.missingFor(c)
	if missing == "" {
		return limits, nil
	}
	if was, ok := b.projects.tolerated.Load(c.ID); b.projects.strict && (!ok || was != limits) {
		return quota.Limits{}, fmt.Errorf("a limit is asked for and cannot be kept: %s: %w", missing, errdefs.ErrFailedPrecondition)
	}
	b.sayMissing(ctx, missing)
	return quota.Limits{}, nil
}

// missingFor says what a content lacks to be bounded; "" if it lacks nothing.
func (b *Backend) missingFor(c Content) string {
	if b.projects.missing == "" && c.Project == 0 {
		return "it was made before its file system had project quotas: make it anew"
	}
	return b.projects.missing
}

// tolerate notes that a content which has been made goes without the limits of its labels, if they cannot be had: it can be started
// all the same, and its other labels changed.
func (b *Backend) tolerate(ctx context.Context, c Content, labels map[string]string) {
	limits, err := b.limitsOf(labels)
	if missing := b.missingFor(c); err == nil && limits != (quota.Limits{}) && missing != "" {
		if b.projects.strict { // then there are no new ones, so that it does not grow
			b.projects.tolerated.Store(c.ID, limits)
		}
		b.sayMissing(ctx, missing)
	}
}

// sayMissing logs that limits are not kept, as an error where they must be.
func (b *Backend) sayMissing(ctx context.Context, missing string) {
	b.projects.said.Do(func() {
		level := log.WarnLevel
		if b.projects.strict {
			level = log.ErrorLevel
		}
		log.G(ctx).Logf(level, "limits of snapshots are asked for and not kept: %s", missing)
	})
}

// limitsOf returns the limits that labels ask for. A snapshot that an image is unpacked into has no limit by default.
func (b *Backend) limitsOf(labels map[string]string) (limits quota.Limits, err error) {
	if !isUnpack(labels) {
		limits.Bytes = b.projects.maxSize
	}
	for label, value := range map[string]*uint64{snapshots.LabelSnapshotMaxSize: &limits.Bytes, LabelMaxInodes: &limits.Inodes} {
		text, ok := labels[label]
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n <= 0 || n > maxLimit {
			return quota.Limits{}, fmt.Errorf("label %s = %q: %w: it is a number from 1 to %d", label, text, errdefs.ErrInvalidArgument, int64(maxLimit))
		}
		*value = uint64(n)
	}
	limits.Bytes = (limits.Bytes + blockSize - 1) / blockSize * blockSize // as the kernel keeps them
	return limits, nil
}
