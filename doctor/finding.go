package doctor

import (
	"context"
	"fmt"
	"strings"

	"github.com/lamina-snapshotter/lamina/metadata"
)

// A Code says what kind of thing a finding is. Codes are stable.
type Code string

// The codes.
const (
	StoreDamaged      Code = "store-damaged"
	StoreInconsistent Code = "store-inconsistent"

	PlaceForeign   Code = "place-foreign"
	PlaceNewer     Code = "place-newer"
	PlaceEmpty     Code = "place-empty"
	PlaceStray     Code = "place-stray"
	PlaceUnsettled Code = "place-unsettled"

	ContentMissing  Code = "content-missing"
	ContentLost     Code = "content-lost"
	ContentSurplus  Code = "content-surplus"
	ContentProject  Code = "content-project"
	TemplateMissing Code = "template-missing"
	TrashLeft       Code = "trash-left"
	TrashWaiting    Code = "trash-waiting"
	TrashStuck      Code = "trash-stuck"

	FilesystemUnknown Code = "filesystem-unknown"
	FilesystemUnread  Code = "filesystem-unread"
	FilesystemSize    Code = "filesystem-size"
	FilesystemErrors  Code = "filesystem-errors"

	PoolUnreadable Code = "pool-unreadable"
	PoolState      Code = "pool-state"
	PoolFull       Code = "pool-full"
	PoolLeft       Code = "pool-left"
	PoolStopped    Code = "pool-stopped"
	SnapshotHeld   Code = "metadata-snapshot-held"

	DeviceForeign   Code = "device-foreign"
	DeviceTable     Code = "device-table"
	DeviceSuspended Code = "device-suspended"
	DeviceSurplus   Code = "device-surplus"
	DeviceMissing   Code = "device-missing"

	LoopDeleted Code = "loop-deleted"
	LoopDouble  Code = "loop-double"
	LoopLeft    Code = "loop-left"

	MountStale Code = "mount-stale"
)

// A Cure says what cures a finding.
type Cure string

// The cures. Their names are stable.
const (
	ByHand    Cure = "hand"    // nothing here: the user
	ByStart   Cure = "start"   // a start and a stop of the daemon
	ByRepair  Cure = "repair"  // something of its own
	ByRemoval Cure = "removal" // the removal of snapshots, which has to be asked for
)

// A Finding is one thing that is not as it should be.
type Finding struct {
	Code   Code   `json:"code"`
	Object string `json:"object"` // what it is about

	// The snapshot that it concerns, if it concerns one.
	ID          metadata.ID `json:"id,omitempty"`
	Snapshotter string      `json:"snapshotter,omitempty"`
	Key         string      `json:"key,omitempty"`

	What    string   `json:"what"`
	Meaning string   `json:"meaning"`
	Advice  string   `json:"advice"` // how it is cured
	Cure    Cure     `json:"cure"`   // what of it [Repair] does
	Holders []string `json:"holders,omitempty"`
	// Note says that it is as it should be, and only worth to be known: no fault.
	Note bool `json:"note,omitempty"`

	cure func(context.Context) error // of ByRepair
}

// String returns the finding as a line.
func (f Finding) String() string {
	var b strings.Builder
	if f.Note {
		b.WriteString("note: ")
	}
	fmt.Fprintf(&b, "%s: %s", f.Code, f.Object)
	if f.Key != "" {
		fmt.Fprintf(&b, " (%s, %s)", f.Snapshotter, f.Key)
	}
	fmt.Fprintf(&b, ": %s (%s). Cure: %s.", f.What, f.Meaning, f.Advice)
	if len(f.Holders) > 0 {
		fmt.Fprintf(&b, " Held by: %s.", strings.Join(f.Holders, "; "))
	}
	return b.String()
}

// A remedy is what all findings of a code have in common.
type remedy struct {
	meaning, advice string
	cure            Cure
}

const (
	startAdvice = "start lamina, or restart it, which does it by itself; or lamina doctor --repair"
	lossAdvice  = "remove the snapshot and those upon it, and pull the image again; or lamina doctor --repair --remove-lost"
)

var remedies = map[Code]remedy{
	StoreDamaged: {
		"nothing is known of any snapshot as long as it cannot be read, and nothing was changed",
		"look at the disk, then put lamina.db back from a copy of the whole root; with no copy, move the root away and pull the images again", ByHand,
	},
	StoreInconsistent: {
		"the buckets of the store contradict each other, which is a bug or a broken disk", "put lamina.db back from a copy of the whole root, and report it", ByHand,
	},
	PlaceForeign: {
		"lamina would refuse to start, for it would delete what is not its own",
		"put the right lamina.db back, or give this one a root of its own", ByHand,
	},
	PlaceNewer: {
		"the store was put back from an older copy, and lamina would refuse to start",
		"put back both from the same copy", ByHand,
	},
	PlaceUnsettled: {
		"some layers are in neither form, so lamina would refuse to start", "run that command again, which goes on", ByHand,
	},
	PlaceEmpty: {
		"its file system is probably not mounted, and lamina would refuse to start", "mount it, or put it back", ByHand,
	},
	PlaceStray: {"it is not lamina's and stays as it is", "move it away", ByHand},
	ContentMissing: {
		"an active snapshot has lost what a power cut took, which had not been synced", "nothing: it is mounted empty the next time", ByStart,
	},
	ContentLost: {
		"it is damage: containers on it do not start", lossAdvice, ByRemoval,
	},
	ContentProject: {
		"what it takes up is walked for, and its limit is not kept; a copy that was put back is so",
		"remove the snapshot and make it again, or set the project that is recorded (chattr -R -p) and the flag P of its directories", ByHand,
	},
	ContentSurplus:  {"a crash left it between content and record; it takes space and nothing else", startAdvice, ByStart},
	TemplateMissing: {"no base layer can be made on it", startAdvice, ByStart},
	TrashLeft:       {"they were removed, and their space is not free yet", startAdvice, ByStart},
	TrashWaiting: {
		"it was removed, and is deleted by itself when its last user is gone", "nothing, or end who holds it; if nobody does, look at the disk", ByHand,
	},
	TrashStuck: {
		"it was removed, and its space is not free yet; lamina tries again every minute", "look at the reason, and at the disk", ByHand,
	},
	FilesystemUnknown: {"it is damage: it cannot be mounted", lossAdvice, ByRemoval},
	FilesystemUnread: {
		"the disk cannot read a part of it, or not now", "look at the kernel's log and the disk; remove the snapshot and pull the image again", ByHand,
	},
	FilesystemSize: {
		"it was grown or shrunk behind lamina's back, or the store is of another time", "remove the snapshot and make it again", ByHand,
	},
	FilesystemErrors: {
		"the kernel has found damage in the file system", "look at the kernel's log and the disk; remove the snapshot and pull the image again", ByHand,
	},
	PoolUnreadable: {
		"it is damage: volumes cannot be read, or not all", "stop lamina, look at the disk, then lamina doctor --repair", ByRepair,
	},
	PoolState: {
		"nothing can be made or removed in it", "look at the kernel's log and the disk, stop lamina, then lamina doctor --repair", ByRepair,
	},
	PoolFull: {
		"when it is full writes fail with ENOSPC, and nothing is made any more", "remove images or containers, or give the pool more room", ByHand,
	},
	PoolLeft: {"a lamina that was killed left it, and nobody uses it", startAdvice, ByStart},
	PoolStopped: {
		"no volume can be used", "look at the log, and start lamina again", ByHand,
	},
	SnapshotHeld:    {"what was deleted since is not free yet", startAdvice, ByStart},
	DeviceForeign:   {"it has a name of ours and another owner, and is in the way", "see whose it is, then remove or rename it (dmsetup)", ByHand},
	DeviceTable:     {"it is not the volume that it is called after", "see who made it, then remove it (dmsetup)", ByHand},
	DeviceSuspended: {"whoever uses it hangs", startAdvice, ByStart},
	DeviceSurplus:   {"nobody needs it, and it keeps the pool from being stopped", startAdvice, ByStart},
	DeviceMissing:   {"the snapshot cannot be used until it is mounted again through lamina", "restart lamina", ByHand},
	LoopDeleted:     {"the space of the file is not free", "stop lamina, then lamina doctor --repair, which takes it away", ByRepair},
	LoopDouble:      {"two devices of one file do not know of each other's writes", "stop lamina, then lamina doctor --repair, which takes it away", ByRepair},
	LoopLeft:        {"a lamina that was killed left it, and no pool runs on it", startAdvice, ByStart},
	MountStale:      {"its snapshot was removed while it was mounted; what is read there may be gone", "unmount it", ByHand},
}

// finding returns a finding with what its code says of all of its kind.
func finding(code Code, object, format string, args ...any) Finding {
	r := remedies[code]
	return Finding{
		Code: code, Object: object, What: fmt.Sprintf(format, args...),
		Meaning: r.meaning, Advice: r.advice, Cure: r.cure, Note: code == TrashLeft || code == TrashWaiting,
	}
}
