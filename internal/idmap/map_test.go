package idmap

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

func tLabels(users, groups string) map[string]string {
	return map[string]string{snapshots.LabelSnapshotUIDMapping: users, snapshots.LabelSnapshotGIDMapping: groups}
}

func TestFromLabels(t *testing.T) {
	for _, labels := range []map[string]string{nil, {}, tLabels("", ""), {"other": "label"}} {
		if m, err := FromLabels(labels); m != nil || err != nil {
			t.Errorf("FromLabels(%v): %v, %v", labels, m, err)
		}
	}
	m, err := FromLabels(tLabels("0:100000:1000,5000:200000:10", "1000:1:1,0:4294967294:1"))
	if err != nil {
		t.Fatal(err)
	}
	want := &Map{
		Users:  []Range{{0, 100000, 1000}, {5000, 200000, 10}},
		Groups: []Range{{1000, 1, 1}, {0, 4294967294, 1}},
	}
	if !reflect.DeepEqual(m, want) {
		t.Errorf("%v, want %v", m, want)
	}
	options := []string{"uidmap=0:100000:1000,5000:200000:10", "gidmap=1000:1:1,0:4294967294:1"}
	if got := m.Options(); !reflect.DeepEqual(got, options) {
		t.Errorf("options %q, want %q", got, options)
	}
}

func TestFromLabelsRefuses(t *testing.T) {
	const good = "0:100000:65536"
	tooMany := strings.Repeat(",9:9:9", maxRanges)
	for bad, says := range map[string]string{
		"0":                           "three numbers",
		"0:1":                         "three numbers",
		"0:1:2:3":                     "three numbers",
		"0:1:2,":                      "three numbers",
		"a:1:2":                       `"a"`,
		"0: 1:2":                      `" 1"`,
		"-1:0:1":                      `"-1"`,
		"0:4294967295:1":              "goes beyond",
		"0:4294967296:1":              "4294967296",
		"0:1:0":                       "empty",
		"0:4294967290:6":              "goes beyond",
		"0:1000:10,9:2000:10":         "overlap",
		"0:1000:10,10:1009:10":        "overlap",
		"1:1000:10":                   "does not map 0",
		"0:1:1" + tooMany:             "341 ranges",
		many(300, 4_000_000_000)[1:]:  "bytes",
		good + "," + good:             "overlap",
		"0:0:4294967294,0:9:1":        "overlap",
		"4294967294:0:1,0:1:1,7:1:1 ": `"1 "`,
	} {
		for _, labels := range []map[string]string{tLabels(bad, good), tLabels(good, bad)} {
			label := snapshots.LabelSnapshotUIDMapping
			if labels[label] != bad {
				label = snapshots.LabelSnapshotGIDMapping
			}
			_, err := FromLabels(labels)
			if !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Errorf("%s = %.40q: %v", label, bad, err)
				continue
			}
			for _, part := range []string{"label " + label + " = ", fmt.Sprintf("%.200q", bad), says} {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%s = %.40q: %v, which does not say %s", label, bad, err, part)
				}
			}
		}
	}
	for _, labels := range []map[string]string{tLabels(good, ""), {snapshots.LabelSnapshotGIDMapping: good}} {
		if _, err := FromLabels(labels); !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), "there is no label containerd.io") {
			t.Errorf("FromLabels(%v): %v", labels, err)
		}
	}
}

// many returns n ranges of one id each, from 0 on, to ids from first on.
func many(n int, first int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, ",%d:%d:1", i, first+i)
	}
	return b.String()
}

// TestKernelTakes makes a namespace with the largest maps that FromLabels lets through.
func TestKernelTakes(t *testing.T) {
	tRoot(t)
	longest := 0
	for n := 1; ; n++ {
		if _, err := FromLabels(tLabels(many(n, 4_000_000_000)[1:], "0:0:1")); err != nil {
			break
		}
		longest = n
	}
	for _, value := range []string{many(longest, 4_000_000_000)[1:], many(maxRanges, 1)[1:], "0:0:4294967295"} {
		m, err := FromLabels(tLabels(value, value))
		if err != nil {
			t.Fatal(err)
		}
		ns, err := mount.GetUsernsFD(join(m.Users), join(m.Groups))
		if err != nil {
			t.Errorf("%d ranges: %v", len(m.Users), err)
			continue
		}
		if err := ns.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestHost(t *testing.T) {
	m := &Map{Users: []Range{{0, 100, 10}, {20, 7, 1}}, Groups: []Range{{0, 300, 21}}}
	for _, tc := range []struct {
		user, group, hostUser, hostGroup uint32
		ok                               bool
	}{
		{0, 0, 100, 300, true},
		{9, 20, 109, 320, true},
		{20, 20, 7, 320, true},
		{10, 0, 0, 300, false},
		{0, 21, 100, 0, false},
	} {
		user, group, ok := m.Host(tc.user, tc.group)
		if user != tc.hostUser || group != tc.hostGroup || ok != tc.ok {
			t.Errorf("%d:%d: %d:%d, %v", tc.user, tc.group, user, group, ok)
		}
	}
}

func FuzzFromLabels(f *testing.F) {
	f.Add("0:100000:65536")
	f.Add("0:1:1,1:5:9")
	f.Fuzz(func(t *testing.T, value string) {
		m, err := FromLabels(tLabels(value, value))
		if m == nil {
			return
		}
		if err != nil {
			t.Fatalf("%q: %v and %v", value, m, err)
		}
		again, err := FromLabels(tLabels(join(m.Users), join(m.Groups)))
		if err != nil || !reflect.DeepEqual(again, m) {
			t.Errorf("%q: %v, then %v, %v", value, m, again, err)
		}
	})
}
