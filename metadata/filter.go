package metadata

import (
	"encoding/binary"
	"regexp"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
)

// indexedLabels are the labels that Walk finds without a scan, by their tag in the index. A tag keeps its meaning.
// containerd's metadata layer asks for snapshot.ref at every Prepare of a layer (core/metadata/snapshot.go,
// createSnapshot), as remote snapshotters need it.
var indexedLabels = map[string]byte{
	snapshots.LabelSnapshotRef: 1,
}

func labelTag(label string) byte { return indexedLabels[label] }

// labelPrefix is an index key but for the id. The lengths keep one value from being the prefix of another.
func labelPrefix(tag byte, name, value string) []byte {
	return appendLabelPrefix(nil, tag, name, value)
}

func appendLabelPrefix[T string | []byte](b []byte, tag byte, name, value T) []byte {
	b = append(b, tag)
	b = append(binary.AppendUvarint(b, uint64(len(name))), name...)
	return append(binary.AppendUvarint(b, uint64(len(value))), value...)
}

// labelKeys are the keys of a snapshot in the label index.
func labelKeys(sn Snapshot) (keys [][]byte) {
	for label, tag := range indexedLabels {
		if value, ok := sn.Labels[label]; ok {
			prefix := labelPrefix(tag, sn.Name, value)
			keys = append(keys, binary.BigEndian.AppendUint64(prefix, uint64(sn.ID)))
		}
	}
	return keys
}

// A condition selects snapshots through an index: field is "name", "parent", or an indexed label.
type condition struct {
	field, value string
}

// planFilters returns conditions that select at least what the filters match, one for each filter, or none if some
// filter needs a scan. Every candidate is matched against the real filter afterwards, so a plan may only err by
// selecting too much.
func planFilters(fs []string) []condition {
	conditions := make([]condition, 0, len(fs))
	for _, f := range fs {
		c, ok := planFilter(f)
		if !ok {
			return nil
		}
		conditions = append(conditions, c)
	}
	return conditions
}

// selector matches the plainest selectors at the start of a filter: a field path, ==, and a value without space or quote,
// or a quoted one. What it does not match, containerd's parser may read otherwise, so planning ends there.
var selector = regexp.MustCompile(`^((?:\w+|"(?:[^"\\]|\\.)*")(?:\.(?:\w+|"(?:[^"\\]|\\.)*"))*)(==|!=)("(?:[^"\\]|\\.)*"|[\w:@/.-]+)(?:,|$)`)

// planFilter picks a selector of the filter that an index answers. The selectors of one filter must all match, so any
// of them will do; labels are picked first, as the fewest snapshots share one.
func planFilter(f string) (best condition, ok bool) {
	for f != "" {
		m := selector.FindStringSubmatch(f)
		if m == nil {
			return best, ok
		}
		f = f[len(m[0]):]
		c, usable := newCondition(m[1], m[3])
		if m[2] != "==" || !usable {
			continue
		}
		if labelTag(c.field) != 0 {
			return c, true
		}
		if !ok || c.field == "name" {
			best, ok = c, true
		}
	}
	return best, ok
}

func newCondition(path, value string) (condition, bool) {
	if strings.HasPrefix(value, `"`) {
		unquoted, err := strconv.Unquote(value)
		if err != nil {
			return condition{}, false
		}
		value = unquoted
	}
	if value == "" {
		return condition{}, false
	}
	switch path {
	case "name", "parent":
		return condition{path, value}, true
	}
	label, ok := strings.CutPrefix(path, "labels.")
	if !ok {
		return condition{}, false
	}
	if unquoted, err := strconv.Unquote(label); err == nil {
		label = unquoted
	}
	return condition{label, value}, labelTag(label) != 0
}
