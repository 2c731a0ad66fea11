package snapshotter

import (
	"context"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"golang.org/x/sys/unix"
)

// Content is a content as its backend knows it: its number, the size that Make returned for it, in bytes, and the project
// id that the store gave it (see Projecter), 0 for none. Size and project are 0 for what is in the trash without ever having
// had a record.
type Content = struct {
	ID, Size uint64
	Project  uint32
}

// Change is one entry of a tree that is not as it is in another, as a Differ tells of it.
type Change = struct {
	// Path is that of the entry from the root of the tree, as "etc/passwd".
	Path string
	// Stat is what the entry is now, with the ids that the owners have in the container. It is nil if the entry is gone.
	Stat *unix.Stat_t
	// Opaque says of a directory that nothing in it comes from below: what is in it now is told of, entry for entry.
	Opaque bool
	// Dir is a descriptor of the directory in which the last name of Path is, to read the entry there. It is open during the
	// call alone, and is of no use if the entry is gone.
	Dir int
}

// A Backend keeps the contents of snapshots in one place: directories under a root, or volumes of a pool. It knows
// contents by number only; the store gives the numbers, and a number is given again only when the store has neither a
// record nor a trash entry for it (rule 3 of the crash model). A backend never reads the store and never decides what
// lives.
//
// A chain is a content and those below it, the topmost first, the base last.
//
// The signatures use no type of this module, so that a backend need not import it: Content is another name of a type
// that has none.
//
// All methods may be called from several goroutines at once. The caller holds the snapshot's lock: Make, Freeze and
// Delete are never called for one number at once, nor Delete while another method works on that number, but Usage may
// run beside anything. Every method obeys ctx wherever it may wait or walk.
//
// The suite in package backendtest holds a Backend to this text.
type Backend interface {
	// Owner returns the uuid of the store that this place belongs to and the start at which that store last claimed
	// it. A place that is new and empty returns "", 0. It is an error if the place holds something but
	// does not say whose it is. Owner changes nothing.
	Owner(ctx context.Context) (uuid string, start uint64, err error)

	// Claim records uuid and start as the owner of this place, durably. It is called after Owner and before every method
	// below, and again before Close.
	Claim(ctx context.Context, uuid string, start uint64) error

	// Make creates the writable content c, which has no size yet, on top of the chain, which is empty for a base. What
	// already lies at its number is garbage, left by a crash, and is deleted first. The labels are those of the snapshot. One
	// that containerd unpacks a layer into always has snapshots.LabelSnapshotRef, also where only its key says so; here as in
	// all other methods.
	//
	// It returns the size that the record shall keep, in bytes: that of the volume, or 0 where a content has no size of
	// its own. At return the content need not be durable, if it becomes so with the first file in it that somebody syncs: an
	// empty content is then as good after a power cut, and Mounts makes it.
	//
	// On error nothing needs to be left to delete; if something is, Delete(c) removes it.
	Make(ctx context.Context, c Content, chain []Content, labels map[string]string) (size uint64, err error)

	// Mounts returns how to mount a chain. If writable, chain[0] is the content of an active snapshot and the last mount
	// is writable; otherwise all are read-only, and chain[0] is frozen. An empty chain is an empty tree. It may be called
	// any number of times, and not at all.
	//
	// A writable content that a power cut has taken, because Make need not be durable, is made again, empty. Where Make is
	// durable, a content that is missing is fs.ErrNotExist.
	Mounts(ctx context.Context, chain []Content, writable bool, labels map[string]string) ([]mount.Mount, error)

	// Freeze makes the content chain[0] durable and from then on unchanging: at return a power cut no longer harms it
	// (unless the user turned that off). It is called before the record says "committed", perhaps more than once. It returns
	// what Usage would, if that takes no time, or nil.
	Freeze(ctx context.Context, chain []Content) (*snapshots.Usage, error)

	// Usage returns what chain[0] takes up without those below it: bytes on disk and inodes, as containerd counts
	// them: a file with several links once, directories too. Neither is negative. A content that changes meanwhile is no
	// error.
	Usage(ctx context.Context, chain []Content) (snapshots.Usage, error)

	// Delete removes content c. It is idempotent: no content, or a part of one, is no error. It stops early when ctx
	// ends; what is left goes with the next call. A content that somebody still uses is unix.EBUSY: see Watcher.
	Delete(ctx context.Context, c Content) error

	// List returns the numbers of all contents that lie in this place, whole or partial, in any order.
	List(ctx context.Context) ([]uint64, error)

	// Close lets go of what the backend holds. It deletes and unmounts nothing that a container may be using.
	Close() error
}

// A Releaser is a Backend whose Mounts may start something in the kernel, such as the device of a volume.
type Releaser interface {
	// Release ends what Mounts started for content id, at once or when its last user is gone: no active snapshot has the
	// content and no view shows it. It is called under the exclusive lock of the snapshot whose content it is. It is
	// idempotent, and cheap where there is nothing to end. It returns soon after ctx has ended, also where the kernel does
	// not answer, and so does Mounts: few are called at once, and each that stays keeps the others waiting.
	Release(ctx context.Context, id uint64) error
}

// A Describer is a Backend that can tell how a chain is mounted without getting it ready.
type Describer interface {
	// Describe returns what Mounts would, with these arguments, or nil where Mounts would first have to make or start something. It changes
	// nothing, neither on the disk nor in the kernel.
	Describe(ctx context.Context, chain []Content, writable bool, labels map[string]string) ([]mount.Mount, error)
}

// A Templater is a Backend that makes a base on top of a template: a content with an empty tree, of which there are a few.
// The template has a record of its own, so all rules hold for it, and is the last of the chains that it is below.
type Templater interface {
	// Template returns the name of the template of a base with these labels. It changes nothing. Labels that are wrong are
	// errdefs.ErrInvalidArgument.
	Template(labels map[string]string) (name string, err error)

	// MakeTemplate makes the content id as the template of that name, frozen and durable, and returns its size, as Make
	// does. What already lies at id is deleted first.
	MakeTemplate(ctx context.Context, id uint64, name string) (size uint64, err error)
}

// A Labeler is a Backend that tells more of a content than the store knows.
type Labeler interface {
	// Labels returns the labels to show with the snapshot whose content is c, or nil. They are never stored: what a client sets of that name
	// is dropped, and no filter of Walk sees them. The keys are the same for each content. It is called for one snapshot after the
	// other, and touches no disk.
	Labels(c Content) map[string]string
}

// A Resizer is a Backend whose contents have limits that may change while they are in use.
type Resizer interface {
	// Resize gives content c, that of an active snapshot, the limits that its new labels ask for, on top of the chain below
	// it, and returns the size that the record shall keep from now on. It is called under the exclusive lock of the snapshot,
	// also for labels that are no limits, and before the labels are recorded: a crash in between leaves limits that the record
	// does not tell of, and Mounts puts them right. It is idempotent. At return the limits are durable. A client waits for it
	// with all his other calls (containerd calls in a transaction of its own), so it takes no longer than it must.
	//
	// A limit that cannot be had is errdefs.ErrInvalidArgument or errdefs.ErrFailedPrecondition, and changes nothing.
	Resize(ctx context.Context, c Content, below []Content, labels map[string]string) (size uint64, err error)
}

// A Sizer is a Resizer whose contents have sizes that their records must not fall behind: by its record a content is mounted
// after a crash, and what is made upon it is as large. So a larger size is recorded before the content has it, in a transaction
// of its own.
type Sizer interface {
	Resizer

	// NewSize returns the size that c is to have when its labels change from was to labels: c.Size unless they ask for another.
	// It changes nothing. Its errors are those of Resize.
	//
	// Resize is called with that size in c, and leaves c with it. With an error it returns the size that c may have all the
	// same, or 0 if it is as it was: then the record is put back.
	NewSize(ctx context.Context, c Content, was, labels map[string]string) (size uint64, err error)
}

// A Projecter is a Backend whose file system counts what each content takes up, and may bound it, under a project id that is
// the content's alone. The store gives the project ids, as it does the numbers: one is given again only when neither a record nor
// the trash has it.
type Projecter interface {
	// Projects returns the first and the last project id that contents may have, or 0, 0 where nothing is counted: contents
	// are then made without one.
	Projects() (first, last uint32)

	// ProjectTaken reports whether the file system counts anything for a project, or bounds it. If the store has not given it
	// to anybody it is somebody else's then, and is passed over. It takes no time.
	ProjectTaken(project uint32) (bool, error)
}

// A Rebaser is a Backend whose contents differ from what is below them, so that one which was made as a base can be put onto a
// chain when it is committed.
type Rebaser interface {
	// Rebase makes content c, which was made as a base with these labels, what it would be had it been made on the chain below,
	// as far as that depends on the chain. An empty chain says that it stays a base. It is called before Freeze and before
	// the record tells of it, so a crash in between leaves an active snapshot, whose content may be changed in part. It is idempotent.
	Rebase(ctx context.Context, c Content, below []Content, labels map[string]string) error
}

// A Watcher is a Backend whose contents somebody may still use when they have been removed: nobody can be told to let go of a
// mount, or of a device. Such a content stays until its last user is gone.
type Watcher interface {
	// Busy returns those of the contents that somebody uses. They are in the trash, so nobody is given them any more. It is
	// called once before the deletions of many. Delete is not called for what it returns; it sees to it that nothing but
	// that use keeps such a content.
	Busy(ctx context.Context, contents []Content) ([]uint64, error)

	// Users says in words for the log who uses a content.
	Users(ctx context.Context, c Content) (string, error)

	// WaitIdle returns nil when one of these contents may be used no more, because the kernel said so, and ctx's error if
	// that ends before. It takes a bounded number of threads and file descriptors, however many contents there are.
	WaitIdle(ctx context.Context, contents []Content) error
}

// A Differ is a Backend that knows what one of its contents changes in those below it, at the cost of the change.
type Differ interface {
	// Changes calls fn for each entry in which the tree that the mounts upper show differs from the one that lower shows, or from an
	// empty tree if lower has no mounts. Both are mounts as Mounts returned them. It compares what is mounted by those alone, so
	// the snapshots may be of any kind, and in use. Mounts that are not this place's, or whose difference it has no short way to
	// tell, are errdefs.ErrNotImplemented, before fn is called for the first time.
	//
	// The order is that of a layer: by name in each directory, what is in a directory right behind it. The directories above an
	// entry are told of before it, changed or not, but for the root. An entry that is there may be told of though it is as it was;
	// what is not told of is as it was. The names of a file with several links that are told of have the same device and inode number.
	//
	// What changes meanwhile, where the backend does not keep that from being seen, is fs.ErrNotExist or not seen; a snapshot that was
	// removed is errdefs.ErrNotFound. An error of fn ends the call and is returned. fn is not called any more when Changes has returned.
	//
	// spare reserves the number of a content that does not exist and that nobody else is given. The backend calls it once at
	// most, when it knows the mounts for its own; it may then make that content, and needs not delete it. At return nothing is mounted.
	Changes(ctx context.Context, lower, upper []mount.Mount, spare func() (Content, error), fn func(Change) error) error
}
