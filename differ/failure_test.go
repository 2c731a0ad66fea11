package differ

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// tell has the node's source tell of what trees does, with a step before each change.
func (n *node) tell(before func(c Change, upper string) error) {
	n.Differ = New(sourceFunc(func(ctx context.Context, lower, upper []mount.Mount, fn func(Change) error) error {
		return n.source.Changes(ctx, lower, upper, func(c Change) error {
			if err := before(c, upper[0].Source); err != nil {
				return err
			}
			return fn(c)
		})
	}), n.store, n.leases)
}

// What took the place of another between the source's look and ours is not told of with the other's owner, mode and time.
func TestCompareSwapped(t *testing.T) {
	link := func(name string) error { return os.Symlink("to "+filepath.Base(filepath.Dir(name)), name) }
	fifo := func(name string) error { return unix.Mkfifo(name, 0o600) }
	dir := func(name string) error { return os.Mkdir(name, 0o700) }
	for name, swap := range map[string][2]func(string) error{
		"link":          {link, link},
		"link and fifo": {link, fifo},
		"fifo and link": {fifo, link},
		"directory":     {dir, fifo},
		"fifo":          {fifo, dir},
	} {
		t.Run(name, func(t *testing.T) {
			n, upper, other := tNode(t), t.TempDir(), filepath.Join(t.TempDir(), "b")
			require.NoError(t, errors.Join(swap[0](filepath.Join(upper, "b")), swap[1](other)))
			n.tell(func(c Change, upper string) error {
				if c.Path != "b" {
					return nil
				}
				return errors.Join(os.Remove(filepath.Join(upper, "b")), os.Rename(other, filepath.Join(upper, "b")))
			})
			_, err := n.Compare(n.ctx(), tMounts(t.TempDir()), tMounts(upper))
			require.ErrorIs(t, err, errdefs.ErrAborted)
			require.ErrorContains(t, err, "/b changed while it was read")
		})
	}
}

// A number that is used again for another file does not make that a name of the first.
func TestLinks(t *testing.T) {
	stat := unix.Stat_t{Dev: 1, Ino: 2, Mode: unix.S_IFREG | 0o644, Nlink: 2, Size: 3, Ctim: unix.Timespec{Sec: 4}}
	change := func(path string, with func(*unix.Stat_t)) Change {
		st := stat
		with(&st)
		return Change{Path: path, Stat: &st}
	}
	as := func(*unix.Stat_t) {}
	l := links{}
	h := &tar.Header{Name: "a"}
	l.add(change("a", as), h)
	for name, with := range map[string]func(*unix.Stat_t){
		"one name":    func(st *unix.Stat_t) { st.Nlink = 1 },
		"a directory": func(st *unix.Stat_t) { st.Mode = unix.S_IFDIR | 0o755 },
		"other disk":  func(st *unix.Stat_t) { st.Dev++ },
	} {
		first, err := l.find(change("c", with))
		require.NoError(t, err, name)
		require.Nil(t, first, name)
	}
	for name, with := range map[string]func(*unix.Stat_t){
		"a fifo":     func(st *unix.Stat_t) { st.Mode = unix.S_IFIFO | 0o644 },
		"more names": func(st *unix.Stat_t) { st.Nlink++ },
		"longer":     func(st *unix.Stat_t) { st.Size++ },
		"written":    func(st *unix.Stat_t) { st.Mtim.Nsec++ },
		"later":      func(st *unix.Stat_t) { st.Ctim.Nsec++ },
	} {
		_, err := l.find(change("c", with))
		require.ErrorIs(t, err, errChanged, name)
	}
	first, err := l.find(change("b", as))
	require.NoError(t, err)
	require.Equal(t, "a", first.name)
	require.Empty(t, l, "all names have been told of")
}

// A path that no file system call takes is refused, also where it is that of a mark.
func TestComparePathLength(t *testing.T) {
	dir, err := os.Open(t.TempDir())
	require.NoError(t, err)
	defer dir.Close()
	for name, test := range map[string]struct {
		mark string
		gone bool
	}{"an entry": {}, "a deletion": {mark: whiteout, gone: true}, "an opaque directory": {mark: "/" + opaque}} {
		t.Run(name, func(t *testing.T) {
			n := tNode(t)
			compare := func(length int) error {
				c := Change{Path: strings.Repeat("d/", length)[:length-len(test.mark)-1] + "x", Dir: int(dir.Fd()), Opaque: test.mark != "" && !test.gone}
				if !test.gone {
					c.Stat = &unix.Stat_t{Mode: unix.S_IFDIR}
				}
				n.Differ = New(sourceFunc(func(_ context.Context, _, _ []mount.Mount, fn func(Change) error) error { return fn(c) }), n.store, n.leases)
				_, err := n.Compare(n.ctx(), nil, nil)
				return err
			}
			err := compare(unix.PathMax)
			require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
			require.ErrorContains(t, err, "move it up or remove it")
			require.Less(t, len(err.Error()), 400)
			err = compare(unix.PathMax - 1)
			if test.gone {
				require.NoError(t, err)
			} else {
				require.ErrorIs(t, err, errdefs.ErrAborted, "it was looked for, and is not there")
			}
		})
	}
}

// A cancelled call ends though its source does not, and the source has no effect on anything when it goes on.
func TestCompareCancelledHang(t *testing.T) {
	upper := t.TempDir()
	mustWrite(t, filepath.Join(upper, "a"), "")
	n := tNode(t)
	hang, told := make(chan struct{}), make(chan error)
	n.Differ = New(sourceFunc(func(_ context.Context, _, upper []mount.Mount, fn func(Change) error) error {
		tell := func(c Change) error { return fn(c) }
		if upper[0].Options == nil { // at once, or behind the first change
			tell = func(c Change) error {
				<-hang
				return fn(c)
			}
		}
		err := n.source.Changes(context.WithoutCancel(n.ctx()), tMounts(t.TempDir()), tMounts(upper[0].Source), tell)
		<-hang
		told <- err
		return err
	}), n.store, n.leases)
	ctx, cancel := context.WithCancel(n.ctx())
	ended := make(chan error)
	for _, options := range [][]string{nil, {"first"}} {
		go func() {
			_, err := n.Compare(ctx, nil, []mount.Mount{{Type: treeType, Source: upper, Options: options}})
			ended <- err
		}()
	}
	require.Eventually(t, func() bool { // the second writes
		s, err := n.store.ListStatuses(n.ctx())
		return err == nil && len(s) == 1
	}, 10*time.Second, time.Millisecond)
	cancel()
	for range 2 {
		select {
		case err := <-ended:
			require.ErrorIs(t, err, context.Canceled)
		case <-time.After(10 * time.Second):
			t.Fatal("the call waits for its source")
		}
	}
	n.noLeases()
	left, err := n.store.ListStatuses(n.ctx())
	require.NoError(t, err)
	require.Empty(t, left)
	close(hang)
	errs := []error{<-told, <-told}
	require.ErrorIs(t, errors.Join(errs...), context.Canceled, "what came late was taken")
}

// The error of a disk goes to the source, which gives it its class, also if the file is read in pieces.
func TestLargeFileDiskError(t *testing.T) {
	f, err := os.Open("/proc/self/mem") // nothing is at its begin: EIO
	require.NoError(t, err)
	defer f.Close()
	l := newLister(make(chan entry, 1), nil)
	err = l.addLarge(t.Context(), &file{fd: int(f.Fd())}, &tar.Header{Name: "large", Size: small + 1})
	require.ErrorIs(t, err, unix.EIO)
	require.ErrorContains(t, err, "/large: ")
}

// A snapshot that was removed as a whole is not there when the call is tried again.
func TestCompareRemoved(t *testing.T) {
	n := tNode(t)
	n.Differ = New(sourceFunc(func(context.Context, []mount.Mount, []mount.Mount, func(Change) error) error {
		return fmt.Errorf("the snapshot was removed: %w: %w", errdefs.ErrNotFound, os.ErrNotExist)
	}), n.store, n.leases)
	_, err := n.Compare(n.ctx(), nil, nil)
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	require.NotErrorIs(t, err, errdefs.ErrAborted)
	require.NotContains(t, err.Error(), "try again")
}

// A containerd that ends in the midst of a layer is all that its client's error tells of.
func TestCompareStoreGoes(t *testing.T) {
	lower, upper := tTrees(t)
	n := tNode(t)
	gone := fmt.Errorf("failed to send write: %w", errgrpc.ToNative(io.EOF)) // as containerd's proxy does
	for _, s := range []*brokenStore{{Store: n.store, write: gone}, {Store: n.store, commit: gone}} {
		n.Differ = New(n.source, s, n.leases)
		_, err := n.Compare(n.ctx(), tMounts(lower), tMounts(upper), diff.WithMediaType(ocispec.MediaTypeImageLayer))
		require.ErrorIs(t, err, errdefs.ErrUnavailable)
		require.ErrorContains(t, err, "containerd's content store went away")
	}
}

// A layer whose lease is gone is not written, and the error says why.
func TestCompareLeaseGone(t *testing.T) {
	lower, upper := tTrees(t)
	n := tNode(t)
	n.Differ = New(n.source, &brokenStore{Store: n.store, before: func() {
		all, err := n.leases.List(n.ctx())
		require.NoError(t, err)
		for _, l := range all {
			require.NoError(t, n.leases.Delete(n.ctx(), l))
		}
	}}, n.leases)
	_, err := n.Compare(n.ctx(), tMounts(lower), tMounts(upper), diff.WithMediaType(ocispec.MediaTypeImageLayer))
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	require.ErrorContains(t, err, "its lease has expired, or somebody deleted it")
}
