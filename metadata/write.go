package metadata

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/labels"
)

// maxKey bounds names and keys, in bytes: bbolt takes keys of 32 KiB, and a key of ours holds a name and a label.
const maxKey = 8 << 10

// maxLabels bounds the labels of a snapshot, in bytes of all keys and values. A client bounds one request; what updates add up to would
// grow until neither a List nor a Stat could be sent any more (16 MiB of gRPC).
const maxLabels = 1 << 20

// Templates is the snapshotter name of the records of templates: committed contents that bases are made upon. A base shows
// no parent, but has the id of its template as that of a parent, so the template is in its chain and cannot be removed.
const Templates = "/templates"

// Create records an active snapshot, a view, or a template, which is committed from the first. The caller sets ID
// (reserved), Name, Key, Kind, Parent and ParentID (the parent's id as it resolved it, or that of a template), Labels and
// Placement; its content is made already. It returns ErrExist if the key is taken, ErrNotExist if the parent is gone,
// ErrInvalid if the parent is not committed.
func (s *Store) Create(ctx context.Context, sn Snapshot) error {
	if err := validate(sn.Name, sn.Key, sn.Labels); err != nil {
		return err
	}
	if isTemplate := sn.Name == Templates; isTemplate != (sn.Kind == snapshots.KindCommitted) || sn.Kind == snapshots.KindUnknown {
		return fmt.Errorf("%w: a snapshot is made active or a view, and a template committed; not %v", ErrInvalid, sn.Kind)
	}
	sn.Labels = withoutEmpty(sn.Labels)
	sn.Created = time.Now().UTC()
	sn.Updated = sn.Created
	return s.update(ctx, func(t *tx) error {
		if err := t.checkParent(sn, ErrInvalid); err != nil {
			return err
		}
		if id, err := t.lookup(sn.Name, sn.Key); err == nil {
			return fmt.Errorf("%w: %s (id %d)", ErrExist, sn.Key, id)
		}
		if err := errors.Join(t.checkFree(sn.ID, sn.Placement), checkProject(sn.Placement)); err != nil {
			return err
		}
		if err := t.raiseSequence(sn.ID); err != nil {
			return err
		}
		if sn.Placement.Medium == Volume {
			if err := t.put(bucketDevices, key4(sn.Placement.Device), key8(uint64(sn.ID))); err != nil {
				return err
			}
		}
		return t.insert(sn)
	})
}

// CommitOptions are what a commit may set.
type CommitOptions struct {
	Labels map[string]string // those of the committed snapshot; the active one's are dropped
	Parent string            // "" keeps the parent; a snapshot without one is moved onto this one
	Usage  *snapshots.Usage  // nil if it is not known yet
}

// Commit turns the active snapshot key into the committed snapshot newKey, of the same id. It returns ErrExist if newKey
// is taken, ErrNotExist if key or the new parent is gone, ErrState if key is not active or the new parent not committed,
// ErrInvalid if key has another parent already.
func (s *Store) Commit(ctx context.Context, name, newKey, key string, o CommitOptions) error {
	if err := validate(name, newKey, o.Labels); err != nil {
		return err
	}
	now := time.Now().UTC()
	return s.update(ctx, func(t *tx) error {
		if _, err := t.lookup(name, newKey); err == nil {
			return fmt.Errorf("%w: %s", ErrExist, newKey)
		}
		sn, err := t.get(name, key)
		if err != nil {
			return err
		}
		if sn.Kind != snapshots.KindActive {
			return fmt.Errorf("%w: %s is %s, not active", ErrState, key, kindName(sn.Kind))
		}
		committed := sn
		committed.Key, committed.Kind = newKey, snapshots.KindCommitted
		committed.Created, committed.Updated = now, now
		committed.Labels, committed.Usage = withoutEmpty(o.Labels), nil
		if o.Usage != nil {
			committed.Usage = knownUsage(*o.Usage)
		}
		if err := t.rebase(&committed, o.Parent); err != nil {
			return err
		}
		return t.replace(sn, committed)
	})
}

// Remove deletes the record of key and puts its content, if it has one, into the trash. It returns the snapshot as it was,
// or ErrState while it has children.
func (s *Store) Remove(ctx context.Context, name, key string) (sn Snapshot, err error) {
	err = s.reduce(ctx, func(t *tx) error {
		if sn, err = t.get(name, key); err != nil {
			return err
		}
		if child, ok := t.firstChild(sn.ID); ok {
			return fmt.Errorf("%w: %s has a child (id %d)", ErrState, key, child)
		}
		if err := t.erase(sn); err != nil || sn.Placement.Medium == NoMedium {
			return err
		}
		return t.discard(sn.Link())
	})
	return sn, err
}

// Update sets labels: all of them if fieldpaths is empty or names "labels", single ones by "labels.KEY". An empty value
// drops a label. Other fields are ErrInvalid. It returns the snapshot as it then is.
func (s *Store) Update(ctx context.Context, name string, info snapshots.Info, fieldpaths ...string) (Snapshot, error) {
	return s.relabel(ctx, name, info, fieldpaths, func(*Snapshot) {})
}

// UpdateSized is Update that sets the size of the content too, in the same transaction.
func (s *Store) UpdateSized(ctx context.Context, name string, info snapshots.Info, size uint64, fieldpaths ...string) (Snapshot, error) {
	return s.relabel(ctx, name, info, fieldpaths, func(sn *Snapshot) { sn.Placement.Size = size })
}

func (s *Store) relabel(ctx context.Context, name string, info snapshots.Info, fieldpaths []string, change func(*Snapshot)) (Snapshot, error) {
	if err := validate(name, info.Name, info.Labels); err != nil {
		return Snapshot{}, err
	}
	now := time.Now().UTC()
	var updated Snapshot
	err := s.update(ctx, func(t *tx) error {
		sn, err := t.get(name, info.Name)
		if err != nil {
			return err
		}
		next, err := sn.relabelled(info, fieldpaths)
		if err != nil {
			return err
		}
		next.Updated = now
		change(&next)
		updated = next
		return t.replace(sn, next)
	})
	if err != nil {
		return Snapshot{}, err
	}
	return updated, nil
}

// Relabelled returns a snapshot as it is, and as Update would leave it. It writes nothing.
func (s *Store) Relabelled(name string, info snapshots.Info, fieldpaths ...string) (was, next Snapshot, err error) {
	if err := validate(name, info.Name, info.Labels); err != nil {
		return Snapshot{}, Snapshot{}, err
	}
	if was, err = s.Get(name, info.Name); err != nil {
		return Snapshot{}, Snapshot{}, err
	}
	next, err = was.relabelled(info, fieldpaths)
	return was, next, err
}

func (s Snapshot) relabelled(info snapshots.Info, fieldpaths []string) (next Snapshot, err error) {
	next = s
	if next.Labels, err = mergeLabels(s.Labels, info.Labels, fieldpaths); err != nil {
		return next, err
	}
	return next, checkLabels(next.Labels)
}

func mergeLabels(old, given map[string]string, fieldpaths []string) (map[string]string, error) {
	if len(fieldpaths) == 0 {
		return withoutEmpty(given), nil
	}
	merged := maps.Clone(old)
	if merged == nil {
		merged = map[string]string{}
	}
	for _, path := range fieldpaths {
		if path == "labels" {
			merged = maps.Clone(given)
			continue
		}
		key, ok := strings.CutPrefix(path, "labels.")
		if !ok {
			return nil, fmt.Errorf("%w: the field %q cannot be updated", ErrInvalid, path)
		}
		if merged == nil {
			merged = map[string]string{}
		}
		merged[key] = given[key]
	}
	return withoutEmpty(merged), nil
}

// SetUsage keeps what a snapshot takes up, once that is known for good. A snapshot that is gone is no error.
func (s *Store) SetUsage(ctx context.Context, id ID, usage snapshots.Usage) error {
	return s.amend(ctx, id, func(sn *Snapshot) { sn.Usage = knownUsage(usage) })
}

// SetSize sets the size of the content of a snapshot. A snapshot that is gone is no error.
func (s *Store) SetSize(ctx context.Context, id ID, size uint64) error {
	return s.amend(ctx, id, func(sn *Snapshot) { sn.Placement.Size = size })
}

// amend changes a record, and nothing that points at it. A snapshot that is gone is no error.
func (s *Store) amend(ctx context.Context, id ID, change func(*Snapshot)) error {
	return s.update(ctx, func(t *tx) error {
		raw := t.Bucket(bucketRecords).Get(key8(uint64(id)))
		if raw == nil {
			return nil
		}
		sn, err := decodeSnapshot(id, raw)
		if err != nil {
			return err
		}
		next := sn
		change(&next)
		return t.replace(sn, next)
	})
}

func validate(name, key string, given map[string]string) error {
	for what, s := range map[string]string{"snapshotter name": name, "key": key} {
		if s == "" {
			return fmt.Errorf("%w: the %s is empty", ErrInvalid, what)
		}
		if len(s) > maxKey {
			return fmt.Errorf("%w: the %s has %d bytes, more than %d", ErrInvalid, what, len(s), maxKey)
		}
		if !utf8.ValidString(s) { // gRPC could not send it, nor a List with it
			return fmt.Errorf("%w: the %s is not UTF-8", ErrInvalid, what)
		}
	}
	if strings.ContainsRune(name, 0) {
		return fmt.Errorf("%w: the snapshotter name holds a zero byte", ErrInvalid)
	}
	return checkLabels(given)
}

func checkLabels(given map[string]string) error {
	size := 0
	for k, v := range given {
		if err := labels.Validate(k, v); err != nil {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		if !utf8.ValidString(k) || !utf8.ValidString(v) {
			return fmt.Errorf("%w: the label %.100q is not UTF-8", ErrInvalid, k)
		}
		size += len(k) + len(v)
	}
	if size > maxLabels {
		return fmt.Errorf("%w: the %d labels have %d bytes, more than %d", ErrInvalid, len(given), size, maxLabels)
	}
	return nil
}

// withoutEmpty copies the labels without those of no value, as containerd's own store does.
func withoutEmpty(given map[string]string) map[string]string {
	kept := maps.Clone(given)
	maps.DeleteFunc(kept, func(_, v string) bool { return v == "" })
	if len(kept) == 0 {
		return nil
	}
	return kept
}

func kindName(k snapshots.Kind) string {
	return strings.ToLower(k.String())
}
