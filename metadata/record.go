package metadata

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"google.golang.org/protobuf/encoding/protowire"
)

// ID is the number of a snapshot, unique over all snapshotter names and never given twice to records. 0 is none.
type ID uint64

// Medium says what a content is made of.
type Medium uint8

// The media. Their numbers are stored.
const (
	NoMedium  Medium = iota // no content of its own: a view, which shows that of its parent
	Directory               // a directory of the union backend
	Volume                  // a volume of the thin backend
)

func (m Medium) String() string {
	switch m {
	case NoMedium:
		return "none"
	case Directory:
		return "directory"
	case Volume:
		return "volume"
	}
	return fmt.Sprintf("medium(%d)", uint8(m))
}

// MaxDevice is the highest thin device id; the kernel keeps 24 bits (MAX_DEV_ID in drivers/md/dm-thin.c).
const MaxDevice = 1<<24 - 1

// Placement says where a content is.
type Placement struct {
	Medium Medium
	Whole  bool   // the whole tree; otherwise only what differs from the parent
	Device uint32 // the thin device id, for a Volume
	Size   uint64 // bytes that the content may take, for a Volume

	// Project is the id under which the file system counts what a Directory takes up, 0 if it does not.
	Project uint32
}

// Snapshot is one record of the store.
type Snapshot struct {
	ID        ID
	Name      string // snapshotter name
	Key       string // unique within Name
	Kind      snapshots.Kind
	ParentID  ID     // 0 for a base
	Parent    string // key of the parent, "" for a base; a committed snapshot keeps its key for life
	Created   time.Time
	Updated   time.Time
	Labels    map[string]string
	Placement Placement
	Usage     *snapshots.Usage // nil until it is known
}

// Info returns the snapshot as containerd shows it.
func (s Snapshot) Info() snapshots.Info {
	return snapshots.Info{
		Kind: s.Kind, Name: s.Key, Parent: s.Parent, Labels: s.Labels, Created: s.Created, Updated: s.Updated,
	}
}

// Link returns the snapshot's link in a chain.
func (s Snapshot) Link() Link {
	return Link{ID: s.ID, Kind: s.Kind, ParentID: s.ParentID, Placement: s.Placement}
}

// Link is the part of a record that a chain is made of.
type Link struct {
	ID        ID
	Kind      snapshots.Kind
	ParentID  ID
	Placement Placement
}

// Content is the number that the backend of the medium knows the content by: the thin device id of a volume, the id of
// a directory. It means nothing for NoMedium.
func (l Link) Content() uint64 {
	if l.Placement.Medium == Volume {
		return uint64(l.Placement.Device)
	}
	return uint64(l.ID)
}

// The fields of a record, which is a protobuf message (https://protobuf.dev/programming-guides/encoding). Zero values
// are left out. Numbers are never used again for another meaning. An unknown field is an error: a program that does not
// know it would drop it with the next write.
const (
	fieldName      = 1
	fieldKey       = 2
	fieldKind      = 3
	fieldParentID  = 4
	fieldParent    = 5
	fieldCreated   = 6 // nanoseconds since 1970
	fieldUpdated   = 7
	fieldLabel     = 8 // repeated message: 1 key, 2 value; sorted by key
	fieldMedium    = 9
	fieldWhole     = 10
	fieldDevice    = 11
	fieldSize      = 12
	fieldUsageSize = 13 // one more than the bytes, so that a known 0 is told from an unknown usage
	fieldInodes    = 14
	fieldProject   = 15 // since version 3

	fieldLabelKey   = 1
	fieldLabelValue = 2
)

var errRecord = errors.New("malformed record")

func (s Snapshot) encode() []byte {
	b := make([]byte, 0, 128+len(s.Key)+len(s.Parent)+checksumSize)
	b = appendString(b, fieldName, s.Name)
	b = appendString(b, fieldKey, s.Key)
	b = appendUint(b, fieldKind, uint64(s.Kind))
	b = appendUint(b, fieldParentID, uint64(s.ParentID))
	b = appendString(b, fieldParent, s.Parent)
	b = appendUint(b, fieldCreated, uint64(s.Created.UnixNano()))
	b = appendUint(b, fieldUpdated, uint64(s.Updated.UnixNano()))
	for _, k := range slices.Sorted(maps.Keys(s.Labels)) {
		label := appendString(appendString(nil, fieldLabelKey, k), fieldLabelValue, s.Labels[k])
		b = protowire.AppendTag(b, fieldLabel, protowire.BytesType)
		b = protowire.AppendBytes(b, label)
	}
	b = s.Placement.append(b)
	if s.Usage != nil {
		b = appendUint(b, fieldUsageSize, uint64(s.Usage.Size)+1)
		b = appendUint(b, fieldInodes, uint64(s.Usage.Inodes))
	}
	return seal(s.ID, b)
}

// encode returns the trash entry of a content.
func (l Link) encode() []byte { return seal(l.ID, l.Placement.append(nil)) }

func (p Placement) append(b []byte) []byte {
	b = appendUint(b, fieldMedium, uint64(p.Medium))
	if p.Whole {
		b = appendUint(b, fieldWhole, 1)
	}
	b = appendUint(b, fieldDevice, uint64(p.Device))
	b = appendUint(b, fieldSize, p.Size)
	return appendUint(b, fieldProject, uint64(p.Project))
}

// decodeSnapshot reads a whole record. It keeps no reference to b, which may lie in the mapped file.
func decodeSnapshot(id ID, b []byte) (Snapshot, error) {
	s := Snapshot{ID: id}
	var created, updated, usage uint64
	var inodes int64
	b, err := unseal(id, b)
	if err != nil {
		return s, err
	}
	err = eachField(b, func(num protowire.Number, v uint64, data []byte) error {
		switch num {
		case fieldName:
			s.Name = string(data)
		case fieldKey:
			s.Key = string(data)
		case fieldParent:
			s.Parent = string(data)
		case fieldCreated:
			created = v
		case fieldUpdated:
			updated = v
		case fieldUsageSize:
			usage = v
		case fieldInodes:
			inodes = int64(v)
		case fieldLabel:
			return s.addLabel(data)
		default:
			return setLinkField(num, v, &s.Kind, &s.ParentID, &s.Placement)
		}
		return nil
	})
	s.Created, s.Updated = time.Unix(0, int64(created)).UTC(), time.Unix(0, int64(updated)).UTC()
	if usage > 0 {
		s.Usage = &snapshots.Usage{Size: int64(usage - 1), Inodes: inodes}
	}
	return s, err
}

// decodeLink reads what a chain needs and allocates nothing.
func decodeLink(id ID, b []byte) (Link, error) {
	l := Link{ID: id}
	b, err := unseal(id, b)
	if err != nil {
		return l, err
	}
	err = eachField(b, func(num protowire.Number, v uint64, _ []byte) error {
		switch num {
		case fieldName, fieldKey, fieldParent, fieldCreated, fieldUpdated, fieldUsageSize, fieldInodes, fieldLabel:
			return nil
		default:
			return setLinkField(num, v, &l.Kind, &l.ParentID, &l.Placement)
		}
	})
	return l, err
}

// decodeEntry is decodeLink for what lies at a key. A store that is open read-only has keys as they may be.
func decodeEntry(key, value []byte) (Link, error) {
	id, ok := parseKey8(key)
	if !ok {
		return Link{}, fmt.Errorf("%w: its key is no id", errRecord)
	}
	return decodeLink(id, value)
}

func setLinkField(num protowire.Number, v uint64, kind *snapshots.Kind, parent *ID, p *Placement) error {
	switch num {
	case fieldKind:
		if v > uint64(snapshots.KindCommitted) {
			return fmt.Errorf("%w: kind %d", errRecord, v)
		}
		*kind = snapshots.Kind(v)
	case fieldParentID:
		*parent = ID(v)
	case fieldMedium:
		if v > uint64(Volume) {
			return fmt.Errorf("%w: medium %d", errRecord, v)
		}
		p.Medium = Medium(v)
	case fieldWhole:
		p.Whole = v != 0
	case fieldDevice:
		if v > MaxDevice {
			return fmt.Errorf("%w: device id %d", errRecord, v)
		}
		p.Device = uint32(v)
	case fieldSize:
		p.Size = v
	case fieldProject:
		if v > math.MaxUint32 {
			return fmt.Errorf("%w: project id %d", errRecord, v)
		}
		p.Project = uint32(v)
	default:
		return fmt.Errorf("%w: unknown field %d", errRecord, num)
	}
	return nil
}

func (s *Snapshot) addLabel(b []byte) error {
	k, v, err := decodeLabel(b)
	if s.Labels == nil {
		s.Labels = map[string]string{}
	}
	s.Labels[string(k)] = string(v)
	return err
}

// decodeLabel returns parts of b.
func decodeLabel(b []byte) (k, v []byte, err error) {
	err = eachField(b, func(num protowire.Number, _ uint64, data []byte) error {
		switch num {
		case fieldLabelKey:
			k = data
		case fieldLabelValue:
			v = data
		default:
			return fmt.Errorf("%w: unknown field %d in a label", errRecord, num)
		}
		return nil
	})
	return k, v, err
}

// isText says which fields of a record hold text; the others are varints. In a label both do, and their numbers are
// those of text here too.
func isText(num protowire.Number) bool {
	return num == fieldName || num == fieldKey || num == fieldParent || num == fieldLabel
}

// eachField calls fn with every field of a message: a number or, for text, its bytes.
func eachField(b []byte, fn func(num protowire.Number, v uint64, data []byte) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("%w: %w", errRecord, protowire.ParseError(n))
		}
		b = b[n:]
		var v uint64
		var data []byte
		switch {
		case typ == protowire.BytesType && isText(num):
			data, n = protowire.ConsumeBytes(b)
		case typ == protowire.VarintType && !isText(num):
			v, n = protowire.ConsumeVarint(b)
		default:
			return fmt.Errorf("%w: field %d has wire type %d", errRecord, num, typ)
		}
		if n < 0 {
			return fmt.Errorf("%w: field %d: %w", errRecord, num, protowire.ParseError(n))
		}
		b = b[n:]
		if err := fn(num, v, data); err != nil {
			return err
		}
	}
	return nil
}

func appendString(b []byte, num protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, num, protowire.BytesType), s)
}

func appendUint(b []byte, num protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), v)
}

// knownUsage keeps a usage within what the record can hold.
func knownUsage(u snapshots.Usage) *snapshots.Usage {
	u.Size = min(max(u.Size, 0), math.MaxInt64-1)
	u.Inodes = max(u.Inodes, 0)
	return &u
}
