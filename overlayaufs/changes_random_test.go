package overlayaufs

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// TestRandomChanges changes trees at random. What Changes tells, applied as a layer to a copy of the tree below, must make the tree that
// the container sees, and so must what containerd's differ tells. Half of the layers become layers below.
func TestRandomChanges(t *testing.T) {
	for name, cfg := range map[string]Config{
		"plain": {}, "index": {Index: on}, "metacopy": {Metacopy: on}, "userxattr": {UserXattr: on}, "volatile": {Volatile: on},
	} {
		t.Run(name, func(t *testing.T) {
			cfg.Root = filepath.Join(t.TempDir(), "union")
			r := &changeRounds{Backend: tBackend(t, cfg), indexed: cfg.Index == on, renames: cfg.Metacopy == on}
			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d", seed)
			r.vandal = vandal{Rand: rand.New(rand.NewPCG(seed, 0))}
			r.base(t)
			for n := 0; n < 7 || !r.told && n < 30; n++ { // with links across renamed directories nothing is told
				r.round(t)
			}
			if !r.told {
				t.Error("in no round anything was told")
			}
		})
	}
}

// changeRounds are random changes in one place.
type changeRounds struct {
	*Backend
	vandal
	indexed bool      // what was written to a file with hard links below is refused
	renames bool      // of a directory: a link between it and a file that is as it was is refused
	chain   []Content // frozen
	next    uint64
	told    bool
	layer   []byte // the last one
}

// base makes a layer as one that was unpacked: all times in whole seconds.
func (r *changeRounds) base(t *testing.T) {
	t.Helper()
	r.next = 2
	tMustMake(t, r.Backend, 1, nil, nil)
	r.chain = tChain(1)
	root := r.path(1, fsName)
	deep := root
	for range windowSize + 6 {
		deep = filepath.Join(deep, "deep")
	}
	tWrite(t, filepath.Join(deep, "bottom"), "x")
	tWrite(t, filepath.Join(root, "deep/deep/zz"), "behind it")
	r.tree = root
	for range 120 {
		r.create(t, r.census(t))
	}
	if err := filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		old := []unix.Timespec{{Sec: 1_000_000_000}, {Sec: 1_000_000_000}}
		return errors.Join(err, unix.UtimesNanoAt(unix.AT_FDCWD, path, old, unix.AT_SYMLINK_NOFOLLOW))
	}); err != nil {
		t.Fatal(err)
	}
}

func (r *changeRounds) round(t *testing.T) {
	t.Helper()
	c := Content{ID: r.next}
	r.next++
	tMustMake(t, r.Backend, c.ID, r.chain, nil)
	chain := slices.Insert(slices.Clone(r.chain), 0, c)
	var inUse []byte
	var inUseErr error
	tMounted(t, r.Backend, chain, true, nil, func(upper string) {
		r.tree = upper
		times := 40
		if r.indexed {
			times = 5
		}
		for range times {
			r.change(t)
		}
		inUse, inUseErr = tTar(t, r.Backend, r.chain, chain, true)
	})
	tMounted(t, r.Backend, r.chain, false, nil, func(lower string) {
		tMounted(t, r.Backend, chain, true, nil, func(upper string) { // anew: the kernel had inode numbers of before
			r.compare(t, chain, lower, upper)
			if got := r.layer; inUseErr == nil && got != nil && !bytes.Equal(got, inUse) {
				t.Errorf("in use the layer has %d bytes, and then %d", len(inUse), len(got))
			}
		})
	})
	if r.IntN(2) == 0 && len(r.chain) < 8 && !t.Failed() {
		r.freeze(t, chain)
	}
}

// compare compares what Changes tells of the mounted chain, and containerd, with what is there.
func (r *changeRounds) compare(t *testing.T, chain []Content, lower, upper string) {
	t.Helper()
	ours := t.TempDir()
	tCopy(t, lower, ours)
	r.layer = nil
	layer, err := tTar(t, r.Backend, r.chain, chain, true)
	if (r.indexed || r.renames) && errors.Is(err, errdefs.ErrNotImplemented) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	r.told = r.told || len(layer) > 1024 // two blocks are the end
	r.layer = layer
	if _, err := archive.Apply(t.Context(), ours, bytes.NewReader(layer)); err != nil {
		t.Fatal(err)
	}
	tSameEntries(t, "applied", tEntries(t, ours, true, true), tEntries(t, upper, true, true))
	theirs := t.TempDir()
	var buf bytes.Buffer
	tCopy(t, lower, theirs)
	if err := archive.WriteDiff(t.Context(), &buf, lower, upper); err != nil {
		t.Fatal(err)
	}
	if _, err := archive.Apply(t.Context(), theirs, &buf); err != nil {
		t.Fatal(err)
	}
	// Which takes a file that was copied up as it was for one that has its links still.
	tSameEntries(t, "applied from containerd's", tEntries(t, theirs, false, false), tEntries(t, ours, false, false))
}

// freeze makes the topmost layer one of those below. What is told of it stays the same, in a view and as what a container writes.
func (r *changeRounds) freeze(t *testing.T, chain []Content) {
	t.Helper()
	before, err := tTar(t, r.Backend, r.chain, chain, true)
	if err != nil && !errors.Is(err, errdefs.ErrNotImplemented) {
		t.Fatal(err)
	}
	if _, freezeErr := r.Freeze(t.Context(), chain); freezeErr != nil {
		t.Fatal(freezeErr)
	}
	after, afterErr := tTar(t, r.Backend, r.chain, chain, false)
	if r.renames && err != nil && errdefs.IsNotImplemented(afterErr) {
		afterErr = nil
	}
	if afterErr != nil || err == nil && !bytes.Equal(before, after) {
		t.Errorf("a view tells of %d bytes (%v), what is written of %d", len(after), afterErr, len(before))
	}
	r.chain = chain
}

// tCopy copies a tree into an empty directory, with times and hard links.
func tCopy(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "-a", from+"/.", to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
}

// tSameEntries compares two lists of tEntries.
func tSameEntries(t *testing.T, what string, got, want map[string]string) {
	t.Helper()
	names := maps.Clone(got)
	maps.Copy(names, want)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if got[name] != want[name] {
			t.Errorf("%s: %.200q is %.300s, want %.300s", what, name, got[name], want[name])
		}
	}
}

// tEntries says of each entry of a tree what it is. Sockets are left out. If exact, times are to the nanosecond, and those of
// directories are told; if linked, it says which names are of one file.
func tEntries(t *testing.T, root string, exact, linked bool) map[string]string {
	t.Helper()
	all, links := map[string]string{}, map[uint64][]string{}
	if err := filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		var st unix.Stat_t
		if err := errors.Join(err, unix.Lstat(path, &st)); err != nil || path == root {
			return err
		}
		name := strings.TrimPrefix(path, root+"/")
		if typ := st.Mode & unix.S_IFMT; typ != unix.S_IFDIR {
			links[st.Ino] = append(links[st.Ino], name)
		} else if !exact {
			st.Mtim = unix.Timespec{}
		}
		if !exact {
			st.Mtim.Nsec = 0
		}
		if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
			all[name] = fmt.Sprintf("%o %d:%d %x %d.%d %s", st.Mode, st.Uid, st.Gid, st.Rdev, st.Mtim.Sec, st.Mtim.Nsec, tData(t, path, &st))
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, names := range links {
		for _, name := range names {
			if all[name] != "" && len(names) > 1 && linked {
				all[name] += fmt.Sprintf(" one with %q", names)
			}
		}
	}
	return all
}

// tData returns what is in a file or a symbolic link, and its capabilities.
func tData(t *testing.T, path string, st *unix.Stat_t) (data string) {
	t.Helper()
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		data = fmt.Sprintf("%d %q", len(content), bytes.Trim(content, "\x00"))
	case unix.S_IFLNK:
		target, err := os.Readlink(path)
		if err != nil {
			t.Fatal(err)
		}
		return target
	}
	value := make([]byte, 64)
	if n, err := unix.Lgetxattr(path, capability, value); err == nil {
		data += fmt.Sprintf(" %x", value[:n])
	}
	return data
}
