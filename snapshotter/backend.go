package snapshotter

import (
	"context"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
)

// A Backend keeps the contents of snapshots in one place: directories under a root, or volumes of a pool. It knows
// contents by number only; the store gives the numbers, and a number is given again only when the store has neither a
// record nor a trash entry for it (rule 3 of the crash model). A backend never reads the store and never decides what
// lives.
//
// A chain is the numbers of a content and of those below it, the topmost first, the base last.
//
// The signatures use no type of this module, so that a backend need not import it.
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

	// Make creates the writable content id on top of the chain, which is empty for a base. What already lies at id is
	// garbage, left by a crash, and is deleted first. The labels are those of the snapshot.
	//
	// It returns the size that the record shall keep, in bytes: that of the volume, or 0 where a content has no size of
	// its own. At return the content need not be durable, but a fsync in the store's file system must make it so, or an
	// empty content must be as good after a power cut.
	//
	// On error nothing needs to be left to delete; if something is, Delete(id) removes it.
	Make(ctx context.Context, id uint64, chain []uint64, labels map[string]string) (size uint64, err error)

	// Mounts returns how to mount a chain. If writable, chain[0] is the content of an active snapshot and the last mount
	// is writable; otherwise all are read-only. An empty chain is an empty tree. It starts nothing that would have to be
	// stopped, so it may be called any number of times, and not at all.
	//
	// A writable content that a power cut has taken, because Make need not be durable, is made again, empty.
	Mounts(ctx context.Context, chain []uint64, writable bool, labels map[string]string) ([]mount.Mount, error)

	// Freeze makes the content id durable and from then on unchanging: at return a power cut no longer harms it (unless
	// the user turned that off). It is called before the record says "committed", perhaps more than once.
	Freeze(ctx context.Context, id uint64) error

	// Usage returns what content id takes up without those below it: bytes on disk and inodes, as containerd counts
	// them: a file with several links once, directories too. A content that changes meanwhile is no error.
	Usage(ctx context.Context, id uint64) (snapshots.Usage, error)

	// Delete removes content id. It is idempotent: no content, or a part of one, is no error. It stops early when ctx
	// ends; what is left goes with the next call.
	Delete(ctx context.Context, id uint64) error

	// List returns the numbers of all contents that lie in this place, whole or partial, in any order.
	List(ctx context.Context) ([]uint64, error)

	// Close lets go of what the backend holds. It deletes and unmounts nothing that a container may be using.
	Close() error
}
