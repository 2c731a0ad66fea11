package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/admin"
	"github.com/lamina-snapshotter/lamina/internal/term"
)

var update = flag.Bool("update", false, "write what the commands print into testdata")

// now is the moment of the golden files.
var now = time.Date(2026, 11, 22, 20, 0, 0, 0, time.UTC)

// tAsking returns an asking at that moment, and what it prints.
func tAsking() (*asking, *bytes.Buffer) {
	var out bytes.Buffer
	return &asking{settings: defaultSettings(), out: &out, err: io.Discard, now: func() time.Time { return now }}, &out
}

// tGolden compares a text with a file of testdata.
func tGolden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(want), got)
	require.NotContains(t, got, "\x1b", "nobody's escape sequence gets out")
	for line := range strings.Lines(got) {
		require.Equal(t, strings.TrimRight(line, " \n")+"\n", line, "no blanks at the end")
	}
}

const (
	tBase  = "k8s.io/1/sha256:4fc242d58285699eca05db3cc7c7122a2b8e014d9481f323bd9277baacfa0628"
	tLayer = "k8s.io/3/sha256:9ad63333ebc97e32b987ae66aa3cff81300e4c2e6d2f2395cef8a3ae18b249fe"
)

// tSnapshots are an image of two layers with two containers, one view, and what somebody made who means no good.
func tSnapshots() []admin.Snapshot {
	mib := func(n uint64) *admin.Usage { return &admin.Usage{Bytes: n << 20, Inodes: 10 * n} }
	union, image := admin.Content{Backend: "union"}, map[string]string{labelImage: "docker.io/library/alpine:3.20"}
	return []admin.Snapshot{
		{ID: 1, Name: "lamina", Key: tBase, Kind: "committed", Created: now.Add(-72 * time.Hour), Updated: now.Add(-72 * time.Hour), Content: union, Usage: mib(8), Labels: image},
		{ID: 3, Name: "lamina", Key: tLayer, Kind: "committed", Parent: tBase, Created: now.Add(-72 * time.Hour), Updated: now.Add(-70 * time.Hour), Content: union, Usage: mib(120), Labels: image},
		{ID: 5, Name: "lamina", Key: "k8s.io/5/web", Kind: "active", Parent: tLayer, Created: now.Add(-3 * time.Hour), Updated: now.Add(-3 * time.Hour), Content: union},
		{ID: 6, Name: "lamina", Key: "default/6/job", Kind: "active", Parent: tLayer, Created: now.Add(-5 * time.Minute), Updated: now.Add(-5 * time.Minute), Content: union},
		{ID: 7, Name: "lamina", Key: "default/7/\x1b]0;owned\a\x1b[2J", Kind: "view", Parent: tBase, Created: now.Add(-time.Second), Updated: now.Add(-time.Second), Labels: map[string]string{"a<b>&\"\x1b[31m": "\u202e\n\x00"}},
		{ID: 8, Name: "thick", Key: "plain", Kind: "committed", Created: now.Add(-50 * 24 * time.Hour), Updated: now, Usage: mib(1024), Content: admin.Content{Backend: "thin", Whole: true, Device: 4, Limit: 10 << 30}, Labels: map[string]string{labelLayerDigest: strings.TrimPrefix(tBase, "k8s.io/1/")}},
	}
}

func tStatus() admin.Status {
	started, oldest, left := now.Add(-26*time.Hour), admin.Age(95), admin.Age(3*3600)
	headroom, room, rate := uint64(40<<30), uint64(45<<30), float64(4<<20)
	return admin.Status{
		Version: "v1.2.3", Running: true, Started: &started, PID: 4711, Root: "/var/lib/lamina", Address: "/run/lamina/lamina.sock",
		Store:        admin.Store{Path: "/var/lib/lamina/lamina.db", Schema: 4, Starts: 12, Bytes: 16 << 20, Snapshots: 6},
		Snapshotters: []admin.Snapshotter{{Name: "lamina", Backend: "union", Committed: 2, Active: 2, Views: 1}, {Name: "old", Committed: 1}, {Name: "thick", Backend: "thin", Committed: 1}},
		Backends: []admin.Backend{
			{
				Name: "union", Root: "/var/lib/lamina/union", Trash: 3, Waiting: 1, Oldest: &oldest, Failure: "unlinkat \x1b[2J: input/output error",
				Disk: &admin.Disk{Type: "xfs", Total: 100 << 30, Used: 80 << 30, Free: 20 << 30, Inodes: admin.Fill{Used: 10, Total: 1000}}, Union: &admin.Union{Driver: "overlay", Options: []string{"index=off", "metacopy=off"}, Quotas: "project"},
			},
			{
				Name: "thin", Root: "/var/lib/lamina/thin", Pool: &admin.Pool{
					Name: "lamina-1", Mode: "out_of_data_space", NeedsCheck: true, TransactionID: 12, BlockSize: 64 << 10, Volumes: 7, Reserve: 1 << 30,
					Data: admin.Fill{Used: 95 << 30, Total: 100 << 30}, Metadata: admin.Fill{Used: 1 << 20, Total: 100 << 20}, Headroom: &headroom, Room: &room,
					Limit: "thin.max_size", Grown: 2, Rate: &rate, TimeToFull: &left, On: []string{"/var/lib/lamina/thin/data", "/var/lib/lamina/thin/meta data"}, Silent: &oldest,
				},
			},
		},
	}
}

func TestStatusGolden(t *testing.T) {
	a, out := tAsking()
	require.NoError(t, a.printStatus(tStatus()))
	tGolden(t, "status.txt", out.String())

	stopped := admin.Status{
		Version: "v1.2.3", Root: "/var/lib/la mina", Store: admin.Store{Failed: "no space"},
		Backends: []admin.Backend{{Name: "thin", Root: "/x", Problem: "no pool\x1b", Pool: &admin.Pool{Name: "p", Headroom: new(uint64), Rate: new(float64)}}},
	}
	a, out = tAsking()
	require.NoError(t, a.printStatus(stopped))
	tGolden(t, "status-stopped.txt", out.String())

	p, err := poolOf(tStatus())
	require.NoError(t, err)
	a, out = tAsking()
	require.NoError(t, a.printPool(p))
	tGolden(t, "pool.txt", out.String())
	_, err = poolOf(admin.Status{})
	require.ErrorContains(t, err, "no pool")
	_, err = poolOf(admin.Status{Backends: []admin.Backend{{Name: "thin", Problem: "the disk is gone"}}})
	require.ErrorContains(t, err, "the disk is gone")
}

func TestTreeGolden(t *testing.T) {
	for name, tc := range map[string]struct {
		filter filter
		on     string // what is drawn through
	}{
		"tree.txt":        {},
		"tree-filter.txt": {filter: filter{kind: "active", key: "k8s.io"}},
		"tree-key.txt":    {on: tLayer},
		"tree-label.txt":  {filter: filter{labels: [][2]string{{labelLayerDigest, anyValue}}}},
		"tree-none.txt":   {filter: filter{name: "none"}},
	} {
		a, out := tAsking()
		all := tSnapshots()
		if tc.on != "" {
			s, err := resolve(all, "", tc.on)
			require.NoError(t, err)
			all = through(all, s)
		}
		require.NoError(t, a.draw(all, tc.filter, ""))
		tGolden(t, name, out.String())
	}
}

// A chain of any length is drawn, in lines that do not grow without an end.
func TestTreeDeep(t *testing.T) {
	var all []admin.Snapshot
	parent := ""
	for i := range 20000 {
		key := fmt.Sprint(i)
		all = append(all, admin.Snapshot{Name: "lamina", Key: key, Parent: parent, Kind: "committed", Usage: &admin.Usage{Bytes: 1}})
		parent = key
	}
	a, out := tAsking()
	require.NoError(t, a.draw(all, filter{}, ""))
	last := out.String()[strings.LastIndexByte(strings.TrimRight(out.String(), "\n"), '\n'):]
	require.Equal(t, []string{"+19960", "19999", "committed", "1", "B", "19.5", "KiB", "-"}, strings.Fields(last))
	require.Less(t, out.Len(), 20000*400)
	require.NoError(t, a.draw(all, filter{key: "19999"}, "-"))
	tXML(t, out.Bytes()[bytes.Index(out.Bytes(), []byte("<svg")):])
}

// tXML reads XML to its end, and returns the texts in it.
func tXML(t *testing.T, text []byte) (texts []string) {
	t.Helper()
	dec := xml.NewDecoder(bytes.NewReader(text))
	for {
		token, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return texts
		}
		require.NoError(t, err)
		if data, ok := token.(xml.CharData); ok {
			texts = append(texts, string(data))
		}
	}
}

func TestTreeSVG(t *testing.T) {
	a, _ := tAsking()
	path := filepath.Join(t.TempDir(), "tree.svg")
	all := append(tSnapshots(), admin.Snapshot{Name: "lamina", Key: `<script>alert(1)</script>&"'`, Kind: "active", Created: now})
	require.NoError(t, a.draw(all, filter{}, path))
	svg, err := os.ReadFile(path)
	require.NoError(t, err)
	texts := tXML(t, svg)
	require.Contains(t, texts, "sha256:4fc242d58285")
	require.Contains(t, texts, `"<script>alert(1)</script>&\"'"`)
	require.Contains(t, texts, "8 MiB · 3 d · k8s.io · docker.io/library/alpine:3.20")
	require.NotContains(t, string(svg), "<script")
	require.Equal(t, 7+3, bytes.Count(svg, []byte("<circle")), "a dot each, and a legend")
	require.Equal(t, 4, bytes.Count(svg, []byte("<path")))
	for range 10 {
		require.Equal(t, string(svg), string(drawSVG(grow(all), now)), "the same of the same")
	}
	tGolden(t, "tree.svg", string(drawSVG(grow(tSnapshots()), now)))
}

func TestListGolden(t *testing.T) {
	a, out := tAsking()
	require.NoError(t, a.list(tSnapshots(), false))
	tGolden(t, "ls.txt", out.String())
	out.Reset()
	require.NoError(t, a.list(tSnapshots(), true))
	tGolden(t, "ls-quiet.txt", out.String())
	out.Reset()
	a.json = true
	require.NoError(t, a.list(tSnapshots(), false))
	require.Equal(t, 6, strings.Count(out.String(), "\n"))
	require.NotContains(t, out.String(), "\x1b")
}

func TestInspectGolden(t *testing.T) {
	a, out := tAsking()
	all := tSnapshots()
	require.NoError(t, a.inspection(0, admin.Inspection{
		Snapshot: all[4], Chain: []admin.Snapshot{all[0]}, Path: "/x", Children: []string{"c\x1b"},
		Mounts:  []admin.Mount{{Type: "overlay", Source: "overlay", Options: []string{"ro", "lowerdir=/a:/b\x1b"}}, {Type: "bind", Source: "/s", Target: "/t"}},
		Holders: []string{"process 12 (sh\x1b)"}, Unknown: []string{"the device: it has not answered"},
	}))
	require.NoError(t, a.inspection(1, admin.Inspection{Snapshot: all[5]}))
	tGolden(t, "inspect.txt", out.String())
}

func TestSpaceGolden(t *testing.T) {
	all := tSnapshots()
	var lines []spaceLine
	for i, s := range all {
		lines = append(lines, spaceLine{admin.Space{Name: s.Name, Key: s.Key, Own: uint64(i) << 20, Shared: 1 << 10, Freed: uint64(10-i) << 30}, s})
	}
	a, out := tAsking()
	require.NoError(t, a.printSpaces(lines, nil, filter{}, "freed", 0))
	tGolden(t, "du.txt", out.String())
	out.Reset()
	require.NoError(t, a.printSpaces(lines, nil, filter{kind: "active"}, "own", 1))
	tGolden(t, "du-top.txt", out.String())
}

func TestTopGolden(t *testing.T) {
	a, out := tAsking()
	w := &watch{asking: a}
	s := sample{
		Time: now, Status: tStatus(), Calls: []callRate{{"lamina", "prepare", 12.25}, {"lamina", "mounts", 3}},
		Grown: []growthRate{{"lamina", tSnapshots()[4].Key, 5 << 20, 1 << 20}, {"lamina", "k8s.io/5/web", 1 << 20, 10}},
	}
	require.NoError(t, w.line(s))
	tGolden(t, "top-line.txt", out.String())
	tGolden(t, "top.txt", w.page(s, &screen{out: out})+"\n")
	a.style = term.Style{Colours: true}
	for line := range strings.Lines(w.page(s, &screen{out: out})) {
		require.Equal(t, strings.Count(line, "\x1b[")%2, 0, "each colour ends in its line: %q", line)
	}
}
