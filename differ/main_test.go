package differ

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/leases"
	ctrdmetadata "github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	cfs "github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// A node is a Differ over directories, with a content store as containerd has it.
type node struct {
	*Differ
	t      *testing.T
	source *trees
	store  content.Store
	leases leases.Manager
	db     *ctrdmetadata.DB
}

// trees is a Source that finds what changed as containerd does. Mounts of another type are not its own.
type trees struct {
	after func(Change) error // called behind each change
}

const treeType = "tree"

func tMounts(dir string) []mount.Mount { return []mount.Mount{{Type: treeType, Source: dir}} }

func (s *trees) Changes(ctx context.Context, lower, upper []mount.Mount, fn func(Change) error) error {
	if len(upper) != 1 || upper[0].Type != treeType {
		return fmt.Errorf("no trees: %w", errdefs.ErrNotImplemented)
	}
	told := map[string]bool{".": true}
	var tell func(name string, gone bool) error
	tell = func(name string, gone bool) error {
		if parent := path.Dir(name); !told[parent] {
			if err := tell(parent, false); err != nil {
				return err
			}
		}
		told[name] = true
		dir, err := unix.Open(filepath.Join(upper[0].Source, path.Dir(name)), unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(dir)
		c := Change{Path: name, Dir: dir}
		if !gone {
			c.Stat = new(unix.Stat_t)
			if err := unix.Fstatat(dir, path.Base(name), c.Stat, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return err
			}
		}
		if err := fn(c); err != nil {
			return err
		}
		if s.after != nil {
			return s.after(c)
		}
		return nil
	}
	return cfs.Changes(ctx, lower[0].Source, upper[0].Source, func(k cfs.ChangeKind, name string, _ os.FileInfo, err error) error {
		if err != nil || k == cfs.ChangeKindUnmodified {
			return err
		}
		if name = strings.TrimPrefix(name, "/"); told[name] {
			return nil
		}
		return tell(name, k == cfs.ChangeKindDelete)
	})
}

// tNode returns a node that must have left nothing behind at the end of the test: no goroutine, no descriptor, no ingest.
func tNode(t *testing.T) *node {
	t.Helper()
	root := t.TempDir()
	cs, err := local.NewStore(root)
	require.NoError(t, err)
	db, err := bolt.Open(filepath.Join(root, "meta.db"), 0o600, &bolt.Options{NoSync: true})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	n := &node{
		t: t, source: &trees{}, db: ctrdmetadata.NewDB(db, cs, nil),
	}
	require.NoError(t, n.db.Init(n.ctx()))
	n.store, n.leases = n.db.ContentStore(), ctrdmetadata.NewLeaseManager(n.db)
	n.Differ = New(n.source, n.store, n.leases)
	before := descriptors(t)
	t.Cleanup(func() {
		left, err := n.store.ListStatuses(n.ctx())
		require.NoError(t, err)
		require.Empty(t, left, "ingests")
		require.LessOrEqual(t, descriptors(t), before, "descriptors")
		require.Eventually(t, func() bool {
			return !strings.Contains(stacks(), "lamina/differ.") && !strings.Contains(stacks(), "klauspost")
		},
			5*time.Second, time.Millisecond, "goroutines of a layer are left")
	})
	return n
}

// stacks returns those of all goroutines but the test's own.
func stacks() string {
	var b bytes.Buffer
	_ = pprof.Lookup("goroutine").WriteTo(&b, 2)
	var others []string
	for s := range strings.SplitSeq(b.String(), "\n\n") {
		if !strings.Contains(s, "testing.tRunner") && !strings.Contains(s, "_test.go") {
			others = append(others, s)
		}
	}
	return strings.Join(others, "\n\n")
}

func descriptors(t *testing.T) int {
	t.Helper()
	open, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(open)
}

// ctx is that of containerd's calls. It does not end with the test, before its cleanup.
func (n *node) ctx() context.Context {
	return namespaces.WithNamespace(context.WithoutCancel(n.t.Context()), "test")
}

// noLeases checks that no lease is left.
func (n *node) noLeases() {
	n.t.Helper()
	l, err := n.leases.List(n.ctx())
	require.NoError(n.t, err)
	require.Empty(n.t, l)
}

// mustCompare returns the layer, uncompressed, and its descriptor.
func (n *node) mustCompare(lower, upper string, opts ...diff.Opt) ([]byte, ocispec.Descriptor) {
	n.t.Helper()
	desc, err := n.Compare(n.ctx(), tMounts(lower), tMounts(upper), opts...)
	require.NoError(n.t, err)
	return n.mustRead(desc), desc
}

func (n *node) mustRead(desc ocispec.Descriptor) []byte {
	n.t.Helper()
	blob, err := content.ReadBlob(n.ctx(), n.store, desc)
	require.NoError(n.t, err)
	require.Equal(n.t, desc.Digest, desc.Digest.Algorithm().FromBytes(blob))
	z, err := compression.DecompressStream(bytes.NewReader(blob))
	require.NoError(n.t, err)
	defer z.Close()
	layer, err := io.ReadAll(z)
	require.NoError(n.t, err)
	return layer
}

// theirs returns the layer that containerd's own differ writes.
func theirs(t *testing.T, lower, upper string, opts ...archive.WriteDiffOpt) []byte {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, archive.WriteDiff(t.Context(), &b, lower, upper, opts...))
	return b.Bytes()
}

// headers lists a tar stream, for messages.
func headers(t *testing.T, layer []byte) (names []string) {
	t.Helper()
	for r := tar.NewReader(bytes.NewReader(layer)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names
		}
		require.NoError(t, err)
		names = append(names, fmt.Sprintf("%c %s %s %o %d:%d %d %s %v %d,%d", h.Typeflag, h.Name, h.Linkname, h.Mode, h.Uid, h.Gid, h.Size,
			h.ModTime, h.PAXRecords, h.Devmajor, h.Devminor))
	}
}

func mustWrite(t *testing.T, name, text string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o755))
	require.NoError(t, os.WriteFile(name, []byte(text), 0o644))
}

// tTrees makes two trees that differ in all that a layer can say.
func tTrees(t *testing.T) (lower, upper string) {
	t.Helper()
	lower, upper = filepath.Join(t.TempDir(), "lower"), filepath.Join(t.TempDir(), "upper")
	old := time.Date(2001, 2, 3, 4, 5, 6, 789, time.UTC)
	for _, dir := range []string{lower, upper} {
		for _, name := range []string{"same/a", "same/b", "etc/kept", "deep/er/and/deeper/still"} {
			mustWrite(t, filepath.Join(dir, name), name)
			require.NoError(t, os.Chtimes(filepath.Join(dir, name), old, old))
		}
	}
	for _, name := range []string{"etc/gone", "gone/with/all", "became/dir", "was/there"} {
		mustWrite(t, filepath.Join(lower, name), name)
	}
	mustWrite(t, filepath.Join(lower, "becamefile/in"), "x")
	mustWrite(t, filepath.Join(upper, "becamefile"), "a file now")
	mustWrite(t, filepath.Join(upper, "became/dir/in"), "a directory now")
	mustWrite(t, filepath.Join(upper, "was/other"), "")
	mustWrite(t, filepath.Join(upper, "deep/er/and/deeper/new"), strings.Repeat("n", small+1))
	mustWrite(t, filepath.Join(upper, "just/small"), strings.Repeat("s", small))
	mustWrite(t, filepath.Join(upper, "large"), strings.Repeat("large ", 1<<18))
	mustWrite(t, filepath.Join(upper, "names/\xff\n ü"), "odd")
	mustWrite(t, filepath.Join(upper, "names", strings.Repeat("l", 255)), "long")
	mustWrite(t, filepath.Join(upper, strings.Repeat("d/", 100)+"x"), "far down")
	require.NoError(t, os.Truncate(filepath.Join(upper, "just/small"), small)) // keeps it
	f, err := os.Create(filepath.Join(upper, "sparse"))
	require.NoError(t, err)
	require.NoError(t, f.Truncate(1<<20))
	_, err = f.WriteAt([]byte("middle"), 1<<19)
	require.NoError(t, errors.Join(err, f.Close()))
	require.NoError(t, os.Symlink("../some/where", filepath.Join(upper, "link")))
	require.NoError(t, os.Symlink(strings.Repeat("t", 3000), filepath.Join(upper, "link-long")))
	require.NoError(t, os.Link(filepath.Join(upper, "large"), filepath.Join(upper, "z-hard")))
	require.NoError(t, os.Link(filepath.Join(upper, "link"), filepath.Join(upper, "z-hard-link")))
	require.NoError(t, unix.Mkfifo(filepath.Join(upper, "fifo"), 0o640))
	for _, name := range []string{"etc", "was/other"} {
		require.NoError(t, os.Chtimes(filepath.Join(upper, name), old, time.Date(1960, 1, 1, 0, 0, 0, 5, time.UTC)))
	}
	require.NoError(t, os.Chmod(filepath.Join(upper, "was/other"), 0o751|fs.ModeSetuid|fs.ModeSetgid))
	require.NoError(t, os.Chmod(filepath.Join(upper, "just"), 0o777|fs.ModeSticky))
	socket(t, filepath.Join(upper, "socket"))
	if os.Getuid() == 0 {
		asRoot(t, upper)
	}
	return lower, upper
}

func socket(t *testing.T, name string) {
	t.Helper()
	require.NoError(t, unix.Mknod(name, unix.S_IFSOCK|0o600, 0))
}

// asRoot makes what only root can.
func asRoot(t *testing.T, upper string) {
	t.Helper()
	require.NoError(t, unix.Mknod(filepath.Join(upper, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	require.NoError(t, unix.Mknod(filepath.Join(upper, "block"), unix.S_IFBLK|0o660, int(unix.Mkdev(259, 70000))))
	require.NoError(t, os.Lchown(filepath.Join(upper, "link"), 1000, 4000000000))
	// cap_net_raw+ep, in version 2 (linux/capability.h).
	caps := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	mustWrite(t, filepath.Join(upper, "ping"), "program")
	require.NoError(t, os.Chmod(filepath.Join(upper, "ping"), 0o755))
	require.NoError(t, unix.Setxattr(filepath.Join(upper, "ping"), capability, []byte(caps), 0))
	require.NoError(t, os.Link(filepath.Join(upper, "ping"), filepath.Join(upper, "ping6")))
}
