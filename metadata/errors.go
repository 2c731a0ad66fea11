package metadata

import "errors"

// Errors of opening a store.
var (
	// ErrLocked is returned when another process has the store open.
	ErrLocked = errors.New("another process has the store open")

	// ErrNotStore is returned when the file is no store of Lamina's.
	ErrNotStore = errors.New("not a Lamina store")

	// ErrDamaged is returned when the file is a store of which something is not as it was written.
	ErrDamaged = errors.New("the store is damaged, and was not changed; put back a copy of the whole root, or move " +
		"lamina.db and the contents beside it away and pull the images again")

	// ErrCutOff is returned when a store is opened read-only whose last commit did not reach the disk as a whole. Opening it to
	// be written undoes that commit.
	ErrCutOff = errors.New("the last write of the store is not on the disk as a whole, as after a power cut in the middle of it; " +
		"a start of the daemon undoes it, and so does `lamina doctor --repair`")

	// ErrVersion is returned when the store's schema is one that this program does not know.
	ErrVersion = errors.New("unknown schema version")
)

// Errors of reads and writes.
var (
	// ErrNotExist is returned when there is no snapshot of that key.
	ErrNotExist = errors.New("snapshot does not exist")

	// ErrExist is returned when the key that a write would make is taken.
	ErrExist = errors.New("snapshot already exists")

	// ErrInvalid is returned when an argument can never be right: an empty key, an unknown field, a label too long, a
	// parent that is not committed.
	ErrInvalid = errors.New("invalid argument")

	// ErrState is returned when the snapshot is in no state for the operation: it has children, or is not active.
	ErrState = errors.New("wrong state")

	// ErrNoDevice is returned when all 2^24-1 thin device ids are taken.
	ErrNoDevice = errors.New("no thin device id is free")

	// ErrNoProject is returned when all project ids of the range are taken.
	ErrNoProject = errors.New("no project id is free")

	// ErrReadOnly is returned when a store that was opened read-only is to be written.
	ErrReadOnly = errors.New("the store is open read-only")

	// ErrFailed is returned by every write after one whose commit reached the file but could not be made durable: the
	// disk reported an error at the last sync. What reads show from then on may or may not survive a power cut, so
	// nothing more is built on it. Opening the store again clears it. The first write to fail so returns it too; it may
	// have happened.
	ErrFailed = errors.New("the store could not be made durable and takes no more writes; check the disk, then restart")
)
