package idmap

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// What the kernel takes (map_write in kernel/user_namespace.c): so many ranges, in a text of less than a page, of one line
// for each; and no id that is the mark of an invalid one.
const (
	maxRanges = 340 // UID_GID_MAP_MAX_EXTENTS
	maxText   = 4096
	noID      = 1<<32 - 1
)

// A Range maps Size ids of a container, from Container on, to as many of the host, from Host on.
type Range struct{ Container, Host, Size uint32 }

// A Map is the ids of users and of groups.
type Map struct{ Users, Groups []Range }

// FromLabels returns the map that the labels of a snapshot ask for, or nil if they ask for none. It is
// errdefs.ErrInvalidArgument if it is not one that the kernel takes, if there is one of the two labels only, or if there is no
// root in it: user 0 and group 0 are who the root directory of a container belongs to.
func FromLabels(labels map[string]string) (*Map, error) {
	users, groups := labels[snapshots.LabelSnapshotUIDMapping], labels[snapshots.LabelSnapshotGIDMapping]
	if users == "" && groups == "" {
		return nil, nil
	}
	for _, l := range []struct{ missing, value, other string }{
		{snapshots.LabelSnapshotUIDMapping, users, snapshots.LabelSnapshotGIDMapping},
		{snapshots.LabelSnapshotGIDMapping, groups, snapshots.LabelSnapshotUIDMapping},
	} {
		if l.value == "" {
			return nil, fmt.Errorf("label %s = %q: there is no label %s, and users and groups are mapped together: %w",
				l.other, labels[l.other], l.missing, errdefs.ErrInvalidArgument)
		}
	}
	m := &Map{}
	var err error
	if m.Users, err = parse(snapshots.LabelSnapshotUIDMapping, users); err != nil {
		return nil, err
	}
	if m.Groups, err = parse(snapshots.LabelSnapshotGIDMapping, groups); err != nil {
		return nil, err
	}
	return m, nil
}

// parse returns the ranges that the value of a label has.
func parse(label, value string) (ranges []Range, err error) {
	for text := range strings.SplitSeq(value, ",") {
		var r Range
		if r, err = parseRange(text); err != nil {
			break
		}
		ranges = append(ranges, r)
	}
	if err == nil {
		err = check(ranges)
	}
	if err != nil {
		return nil, fmt.Errorf("label %s = %.200q: %w: %w", label, value, err, errdefs.ErrInvalidArgument)
	}
	return ranges, nil
}

func parseRange(text string) (Range, error) {
	fields := strings.Split(text, ":")
	if len(fields) != 3 {
		return Range{}, fmt.Errorf("%q is not three numbers, CONTAINER:HOST:SIZE", text)
	}
	var numbers [3]uint32
	for i, field := range fields {
		n, err := strconv.ParseUint(field, 10, 32)
		if err != nil {
			return Range{}, fmt.Errorf("%q in %q is not a number from 0 to %d", field, text, uint32(noID))
		}
		numbers[i] = uint32(n)
	}
	return Range{numbers[0], numbers[1], numbers[2]}, nil
}

// check returns what is wrong with the ranges of one kind of ids.
func check(ranges []Range) error {
	if len(ranges) > maxRanges {
		return fmt.Errorf("there are %d ranges, and the kernel takes %d", len(ranges), maxRanges)
	}
	text := 0
	for i, r := range ranges {
		if r.Size == 0 {
			return fmt.Errorf("the range %s is empty", r)
		}
		if uint64(r.Container)+uint64(r.Size) > noID || uint64(r.Host)+uint64(r.Size) > noID {
			return fmt.Errorf("the range %s goes beyond %d", r, uint32(noID-1))
		}
		for _, other := range ranges[:i] {
			if overlap(r.Container, r.Size, other.Container, other.Size) || overlap(r.Host, r.Size, other.Host, other.Size) {
				return fmt.Errorf("the ranges %s and %s overlap", other, r)
			}
		}
		text += len(r.String()) + 1
	}
	if text >= maxText {
		return fmt.Errorf("the %d ranges take %d bytes, and the kernel reads fewer than %d", len(ranges), text, maxText)
	}
	if _, ok := host(ranges, 0); !ok {
		return errors.New("it does not map 0, which is root in a container")
	}
	return nil
}

func overlap(a, sizeA, b, sizeB uint32) bool {
	return uint64(a) < uint64(b)+uint64(sizeB) && uint64(b) < uint64(a)+uint64(sizeA)
}

// String returns the range as it stands in a label and in a mount option.
func (r Range) String() string { return fmt.Sprintf("%d:%d:%d", r.Container, r.Host, r.Size) }

// Host returns the ids of the host for those of a container, and whether there are any.
func (m *Map) Host(user, group uint32) (hostUser, hostGroup uint32, ok bool) {
	hostUser, ok = host(m.Users, user)
	hostGroup, okGroup := host(m.Groups, group)
	return hostUser, hostGroup, ok && okGroup
}

func host(ranges []Range, id uint32) (uint32, bool) {
	for _, r := range ranges {
		if id >= r.Container && id-r.Container < r.Size {
			return r.Host + (id - r.Container), true
		}
	}
	return 0, false
}

// Inverse returns the map that shows what belongs to ids of the host as of those of the container.
func (m *Map) Inverse() *Map { return &Map{Users: inverse(m.Users), Groups: inverse(m.Groups)} }

func inverse(ranges []Range) []Range {
	back := make([]Range, len(ranges))
	for i, r := range ranges {
		back[i] = Range{Container: r.Host, Host: r.Container, Size: r.Size}
	}
	return back
}

// Options returns the mount options by which containerd's mount code makes an idmapped mount (core/mount/mount_linux.go):
// of the file system itself, or of the lower directories of an overlay. They are containerd's, and not the kernel's.
func (m *Map) Options() []string {
	return []string{"uidmap=" + join(m.Users), "gidmap=" + join(m.Groups)}
}

func join(ranges []Range) string {
	texts := make([]string, len(ranges))
	for i, r := range ranges {
		texts[i] = r.String()
	}
	return strings.Join(texts, ",")
}
