package metadata

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/stretchr/testify/require"
)

// TestRefusedNames has keys, names and labels that nothing could send or keep.
func TestRefusedNames(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "lamina.db"))
	for what, sn := range map[string]Snapshot{
		"a key of 1 MiB":       {Name: "n", Key: strings.Repeat("k", 1<<20)},
		"a key of no UTF-8":    {Name: "n", Key: "\xff\xfe"},
		"a name of no UTF-8":   {Name: "\xff", Key: "k"},
		"a name with NUL":      {Name: "n\x00k", Key: "k"},
		"a label of 1 MiB":     {Name: "n", Key: "k", Labels: map[string]string{"l": strings.Repeat("v", 1<<20)}},
		"a label of no UTF-8":  {Name: "n", Key: "k", Labels: map[string]string{"l\xff": "v"}},
		"a value of no UTF-8":  {Name: "n", Key: "k", Labels: map[string]string{"l": "v\xff"}},
		"labels of 2 MiB":      {Name: "n", Key: "k", Labels: tLabels(512, 4000)},
		"a template's in name": {Name: Templates, Key: "k"},
	} {
		sn.ID, sn.Kind = s.ReserveID(), snapshots.KindActive
		sn.Placement = Placement{Medium: Directory}
		require.ErrorIs(t, s.Create(t.Context(), sn), ErrInvalid, what)
	}
	require.NoError(t, s.Walk(t.Context(), "n", func(sn Snapshot) error { return fmt.Errorf("it is there: %q", sn.Key) }))
}

// tLabels returns that many labels of that many bytes.
func tLabels(count, size int) map[string]string {
	labels := make(map[string]string, count)
	for i := range count {
		key := fmt.Sprintf("label.with.dots/%d", i)
		labels[key] = strings.Repeat("v", size-len(key))
	}
	return labels
}

// TestOddNames keeps what is odd and no more than that, each apart from the others.
func TestOddNames(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "lamina.db"))
	keys := []string{"k", "../k", "/k", "k/", "k\x00", "k\n", "k,a=b", "k:", `k\`, " ", "\x1b[2J", strings.Repeat("k", maxKey)}
	for i, key := range keys {
		labels := map[string]string{"containerd.io/snapshot.ref": key[:min(len(key), 1000)], fmt.Sprint("a.b.", i): `x,y:z\` + "\n"}
		require.NoError(t, s.Create(t.Context(), Snapshot{
			ID: s.ReserveID(), Name: "n", Key: key, Kind: snapshots.KindActive, Labels: labels, Placement: Placement{Medium: Directory},
		}), "%.20q", key)
		got, err := s.Get("n", key)
		require.NoError(t, err)
		require.Equal(t, labels, got.Labels)
	}
	n := 0
	require.NoError(t, s.Walk(t.Context(), "n", func(Snapshot) error { n++; return nil }))
	require.Len(t, keys, n)
}

// TestLabelsDoNotGrow adds labels until no more are taken: the record stays as it was, and can be sent.
func TestLabelsDoNotGrow(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "lamina.db"))
	require.NoError(t, s.Create(t.Context(), Snapshot{
		ID: s.ReserveID(), Name: "n", Key: "k", Kind: snapshots.KindActive, Placement: Placement{Medium: Directory}, Labels: tLabels(10_000, 50),
	}))
	var refused error
	for i := 0; i < 10 && refused == nil; i++ {
		more := map[string]string{}
		var paths []string
		for j := range 50 {
			key := fmt.Sprintf("more-%d-%d", i, j)
			more[key] = strings.Repeat("v", 4000)
			paths = append(paths, "labels."+key)
		}
		_, refused = s.Update(t.Context(), "n", snapshots.Info{Name: "k", Labels: more}, paths...)
	}
	require.ErrorIs(t, refused, ErrInvalid)
	got, err := s.Get("n", "k")
	require.NoError(t, err)
	require.Greater(t, len(got.Labels), 10_000)
	require.NoError(t, checkLabels(got.Labels))
}

// FuzzPlanFilter holds the plan of a filter against what containerd's parser makes of it: a plan may select too much, never too little.
func FuzzPlanFilter(f *testing.F) {
	for _, seed := range []string{
		`name==a`, `labels."containerd.io/snapshot.ref"==b`, `name=="a\"b",parent!=c`, `kind==active,name==x`, `name~=a`, `,`, `"`, `labels.a.b==`,
		`name=="\xff"`, `name==a,labels."containerd.io/snapshot.ref"==b`,
	} {
		f.Add(seed, "a", "b")
	}
	f.Fuzz(func(t *testing.T, filter, key, ref string) {
		parsed, err := filters.ParseAll(filter)
		if err != nil {
			return
		}
		sn := Snapshot{Name: "n", Key: key, Parent: ref, Labels: map[string]string{snapshots.LabelSnapshotRef: ref}}
		if !parsed.Match(adaptor(sn)) {
			return
		}
		for _, c := range planFilters([]string{filter}) {
			got := map[string]string{"name": sn.Key, "parent": sn.Parent, snapshots.LabelSnapshotRef: ref}[c.field]
			if got != c.value {
				t.Errorf("%q matches, and its plan wants %s = %q, not %q", filter, c.field, c.value, got)
			}
		}
	})
}

// FuzzReadMetas reads two pages that anybody may have written.
func FuzzReadMetas(f *testing.F) {
	path := filepath.Join(f.TempDir(), "lamina.db")
	s := mustOpen(f, path)
	if err := s.Close(); err != nil {
		f.Fatal(err)
	}
	file := fileOf(f, path)
	f.Add(file[:2*sectorSize], uint64(len(file)))
	f.Add(file, uint64(len(file)))
	f.Add(file[:min(len(file), 16<<10)], uint64(1<<62))
	f.Fuzz(func(t *testing.T, content []byte, size uint64) {
		j, err := judge(strings.NewReader(string(content)), min(size, uint64(len(content))))
		if err == nil && j.page == nil {
			t.Error("neither a state nor an error")
		}
	})
}
