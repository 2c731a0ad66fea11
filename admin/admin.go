// Package admin is what an operator asks a Lamina: its state, its snapshots, what they take up, and the few things that are
// done by hand. A daemon answers over HTTP on a unix socket that only root can open (Handler, Client); what only reads is
// answered as well from the files of a root that no daemon has. Both are a Source.
//
// Sizes are bytes, durations seconds, times RFC 3339 in UTC. A field that is not known is left out, and never 0 in its place.
package admin

import (
	"context"
	"errors"
	"time"
)

// ErrPartial is returned when a backend has failed, behind what can be told without it.
var ErrPartial = errors.New("this is not all")

// A Source answers what changes nothing.
type Source interface {
	// Status costs no walk of a file system and no dump of a pool's metadata.
	Status(ctx context.Context) (Status, error)
	// Snapshots calls each with all snapshots of all names, a parent before its children, until that returns an error.
	Snapshots(ctx context.Context, each func(Snapshot) error) error
	// Inspect tells all of one snapshot. The error is errdefs.ErrNotFound if there is none of that name and key.
	Inspect(ctx context.Context, name, key string) (Inspection, error)
	// Space calls each with what the deletion of a snapshot, with all that are made upon it, would give back, for each snapshot
	// in the order of Snapshots. It may walk directories and dump a pool's metadata, and calls progress as it goes on, if that is
	// not nil. The error is ErrPartial if a backend has failed: what can be told without it is told all the same.
	Space(ctx context.Context, progress func(done, total int), each func(Space) error) error
}

// A Changer does what is done by hand. Only a daemon is one.
type Changer interface {
	// Cleanup waits until what has been removed is deleted.
	Cleanup(ctx context.Context) error
	// GrowPool makes the pool's data at least that much larger.
	GrowPool(ctx context.Context, bytes uint64) (Pool, error)
	// TrimPool gives the blocks that nothing uses back to what the pool lies on. It returns the number of bytes.
	TrimPool(ctx context.Context) (bytes uint64, err error)
	// AddDevice takes another block device into the pool.
	AddDevice(ctx context.Context, device string) error
}

// A Status is what there is at one moment.
type Status struct {
	Version      string        `json:"version"`
	Running      bool          `json:"running"` // a daemon answers; otherwise the files of a root do
	Started      *time.Time    `json:"started,omitempty"`
	PID          int           `json:"pid,omitempty"`
	Root         string        `json:"root"`
	Address      string        `json:"address,omitempty"` // of the snapshots API
	Store        Store         `json:"store"`
	Snapshotters []Snapshotter `json:"snapshotters"`
	Backends     []Backend     `json:"backends"`
}

// A Store is the file of records.
type Store struct {
	Path      string `json:"path"`
	UUID      string `json:"uuid"`
	Schema    int    `json:"schema"`
	Starts    uint64 `json:"starts"`
	Bytes     uint64 `json:"bytes"`            // of the file
	Snapshots int    `json:"snapshots"`        // of all names
	Failed    string `json:"failed,omitempty"` // why it takes no more writes
	// Commits is what a daemon has written into it since its start.
	Commits *Commits `json:"commits,omitempty"`
}

// Commits are the transactions of a store.
type Commits struct {
	Writes  Histogram `json:"writes"`  // how many changes a commit has: those that came at once share one
	Seconds Histogram `json:"seconds"` // how long the disk took to make it durable
}

// A Histogram is how often a value was how large.
type Histogram struct {
	Count   uint64   `json:"count"`
	Sum     float64  `json:"sum"`
	Buckets []Bucket `json:"buckets"` // the smallest bound first
}

// A Bucket is how often a value was no larger than a bound, all smaller ones included.
type Bucket struct {
	Bound float64 `json:"bound"`
	Count uint64  `json:"count"`
}

// A Snapshotter is what containerd calls by a name.
type Snapshotter struct {
	Name      string `json:"name"`
	Backend   string `json:"backend"` // "union" or "thin"; "" of a name that has snapshots and that nobody serves
	Committed int    `json:"committed"`
	Active    int    `json:"active"`
	Views     int    `json:"views"`
}

// A Backend is where contents lie.
type Backend struct {
	Name    string `json:"name"` // "union" or "thin"
	Root    string `json:"root"`
	Problem string `json:"problem,omitempty"` // why it cannot be used
	// Trash is what is removed and not deleted yet; Waiting are those of it that somebody still uses.
	Trash   int    `json:"trash"`
	Waiting int    `json:"waiting"`
	Oldest  *Age   `json:"oldest,omitempty"`  // how long the deletion that has been tried longest takes already
	Failure string `json:"failure,omitempty"` // of the last deletion that failed, until one succeeds
	// Deleted is how many a daemon has deleted since its start, and DeletionsFailed how often it tried in vain.
	Deleted         uint64 `json:"deleted"`
	DeletionsFailed uint64 `json:"deletions_failed"`
	Disk            *Disk  `json:"disk,omitempty"` // the file system of Root
	Union           *Union `json:"union,omitempty"`
	Pool            *Pool  `json:"pool,omitempty"`
}

// An Age is a duration in seconds.
type Age float64

// A Disk is a file system. Inodes are 0 where it does not count them.
type Disk struct {
	Type   string `json:"type"`
	Total  uint64 `json:"total"`
	Used   uint64 `json:"used"`
	Free   uint64 `json:"free"` // for who is not root
	Inodes Fill   `json:"inodes"`
}

// A Fill is how much of something is used.
type Fill struct {
	Used  uint64 `json:"used"`
	Total uint64 `json:"total"`
}

// A Union says how the union backend mounts.
type Union struct {
	Driver  string   `json:"driver"`
	Options []string `json:"options"`
	Quotas  string   `json:"quotas,omitempty"`
}

// A Pool is the thin pool.
type Pool struct {
	Name string `json:"name"`
	// Mode is "rw", "ro", "out_of_data_space", "Fail" or "Error", as the kernel says it, or "" of a pool that does not run.
	Mode          string `json:"mode"`
	NeedsCheck    bool   `json:"needs_check"`
	TransactionID uint64 `json:"transaction_id"`
	BlockSize     uint64 `json:"block_size"`
	Data          Fill   `json:"data"`
	Metadata      Fill   `json:"metadata"`
	Volumes       int    `json:"volumes"` // of snapshots and templates, and removed ones that are not deleted yet
	Reserve       uint64 `json:"reserve"` // that only what runs may still use
	// Headroom is by how much the data can still grow, and Limit says what bounds that. Room is how much can be written in all until
	// nothing is left: what is free, with the headroom, but no more than the disk below has.
	Headroom *uint64 `json:"headroom,omitempty"`
	Room     *uint64 `json:"room,omitempty"`
	Limit    string  `json:"limit,omitempty"`
	Grown    uint64  `json:"grown"` // how often it has grown since the start
	// Rate is by how many bytes a second Data.Used has risen in the last ten minutes, bursts aside; it is negative if it fell, and
	// absent in the first minute. TimeToFull is how long the room lasts at that rate, absent if it does not rise.
	Rate       *float64 `json:"rate,omitempty"`
	TimeToFull *Age     `json:"time_to_full,omitempty"`
	On         []string `json:"on"` // the files or devices that it lies on
	// Silent is for how long the kernel has not answered: all else is as it was then.
	Silent *Age `json:"silent,omitempty"`
}

// A Snapshot is one record.
type Snapshot struct {
	ID      uint64            `json:"id"`
	Name    string            `json:"name"` // of the snapshotter
	Key     string            `json:"key"`
	Kind    string            `json:"kind"` // "committed", "active" or "view"
	Parent  string            `json:"parent,omitempty"`
	Created time.Time         `json:"created"`
	Updated time.Time         `json:"updated"`
	Labels  map[string]string `json:"labels,omitempty"`
	Content Content           `json:"content"`
	Usage   *Usage            `json:"usage,omitempty"` // of what it adds to its parent, if that is recorded
}

// A Content says where what a snapshot holds lies.
type Content struct {
	Backend string `json:"backend,omitempty"` // "" of a view, which shows its parent's
	Whole   bool   `json:"whole"`             // all files; otherwise what differs from the parent's
	Device  uint32 `json:"device,omitempty"`  // in the pool
	Limit   uint64 `json:"limit,omitempty"`   // bytes
	Project uint32 `json:"project,omitempty"`
}

// A Usage is what a snapshot takes up beside its parent.
type Usage struct {
	Bytes  uint64 `json:"bytes"`
	Inodes uint64 `json:"inodes"`
}

// An Inspection is all that is known of a snapshot.
type Inspection struct {
	Snapshot

	Chain    []Snapshot `json:"chain"`              // its parents, the nearest first
	Children []string   `json:"children,omitempty"` // keys
	Path     string     `json:"path,omitempty"`     // the directory, or the device node if it is active
	Mounts   []Mount    `json:"mounts,omitempty"`   // as containerd got or would get them; not of a stopped daemon
	Holders  []string   `json:"holders,omitempty"`  // mounts and processes that keep it from deletion
	Unknown  []string   `json:"unknown,omitempty"`  // what could not be told of it, and why
}

// A Mount is one of containerd's.
type Mount struct {
	Type    string   `json:"type"`
	Source  string   `json:"source"`
	Target  string   `json:"target,omitempty"`
	Options []string `json:"options"`
}

// A Space is what a snapshot takes up on the disk.
type Space struct {
	Name string `json:"name"`
	Key  string `json:"key"`
	// Own is what it alone has, Shared what it has in common with others. Freed is what the deletion of it and of all that are
	// made upon it gives back.
	Own    uint64 `json:"own"`
	Shared uint64 `json:"shared"`
	Freed  uint64 `json:"freed"`
}
