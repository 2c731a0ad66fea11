package integration

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"strings"
	"testing"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/content"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/diff"
	diffproxy "github.com/containerd/containerd/v2/core/diff/proxy"
	"github.com/containerd/containerd/v2/core/leases"
	leasesproxy "github.com/containerd/containerd/v2/core/leases/proxy"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/rootfs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/lamina-snapshotter/lamina"
)

// walked is what containerd's log has of each comparison that its own differ makes.
const walked = "walk diff for "

// A comparison is a containerd whose diff service asks Lamina first, and a second one that knows its own walking differ only, and
// compares what is mounted for the first.
type comparison struct {
	*node
	snapshots.Snapshotter
	ours client
	// walker is the second containerd, walks its client.
	walker *node
	walks  client
	// ctx keeps what both write into their content stores.
	ctx  context.Context //nolint:containedctx // a namespace and a lease, for the length of a test
	keys int
	kept int // the layers that Lamina has written, and keeps by a lease each
}

func startComparison(t *testing.T, b backend) *comparison {
	t.Helper()
	return newComparison(startNode(t, containerd2, b))
}

func newComparison(n *node) *comparison {
	t := n.t
	t.Helper()
	c := compareAlone(n)
	c.walker = &node{t: t, dir: mustTempDir(t), snapshotter: "overlayfs"}
	c.walker.start(containerd2, mustHave(t, containerd2.dir, "containerd"), "")
	c.walks = c.connectTo(c.walker)
	return c
}

// compareAlone is newComparison without the second containerd.
func compareAlone(n *node) *comparison {
	n.t.Helper()
	c := &comparison{node: n}
	c.ctx = leases.WithLease(namespaces.WithNamespace(n.t.Context(), namespaceOf(session)), lease)
	c.ours = c.connectTo(n)
	c.Snapshotter = proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(c.ours), n.snapshotter)
	return c
}

// lease is one of both containerds: a client's context has only one.
const lease = "compared"

// A client is a connection to a containerd. Its calls are those of containerd's own client, which needs more modules.
type client struct{ *grpc.ClientConn }

func (c client) content() content.Store { return contentproxy.NewContentStore(c.ClientConn) }

func (c client) leases() leases.Manager {
	return leasesproxy.NewLeaseManager(leasesapi.NewLeasesClient(c.ClientConn))
}

func (c client) differ() differ {
	return diffproxy.NewDiffApplier(diffapi.NewDiffClient(c.ClientConn)).(differ)
}

type differ interface {
	diff.Comparer
	diff.Applier
}

// connectTo connects to a containerd and has it keep what is written with the context.
func (c *comparison) connectTo(n *node) client {
	c.t.Helper()
	conn, err := grpc.NewClient("unix://"+n.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(c.t, err)
	c.t.Cleanup(func() { require.NoError(c.t, conn.Close()) })
	to := client{conn}
	_, err = to.leases().Create(c.ctx, leases.WithID(lease))
	require.NoError(c.t, err)
	return to
}

func (c *comparison) prepare(key, parent string) []mount.Mount {
	c.t.Helper()
	mounts, err := c.Prepare(c.ctx, key, parent)
	require.NoError(c.t, err)
	return mounts
}

// diff compares a snapshot with its parent as clients do.
func (c *comparison) diff(with client, key string, opts ...diff.Opt) (ocispec.Descriptor, error) {
	desc, err := rootfs.CreateDiff(c.ctx, key, c.Snapshotter, with.differ(), opts...)
	if err == nil && with == c.ours {
		c.kept++
	}
	return desc, err
}

func (c *comparison) mustDiff(with client, key string, opts ...diff.Opt) ocispec.Descriptor {
	c.t.Helper()
	desc, err := c.diff(with, key, opts...)
	require.NoError(c.t, err)
	return desc
}

// blob returns what a comparison has written.
func (c *comparison) blob(from client, desc ocispec.Descriptor) []byte {
	c.t.Helper()
	b, err := content.ReadBlob(c.ctx, from.content(), desc)
	require.NoError(c.t, err)
	return b
}

// applied returns the tree that the parent has once containerd's own applier has put a layer onto it.
func (c *comparison) applied(from client, desc ocispec.Descriptor, parent string) map[string]file {
	c.t.Helper()
	c.keys++
	key := fmt.Sprint("applied-", c.keys)
	if from != c.walks { // that one knows no other applier
		blob := bytes.NewReader(c.blob(from, desc))
		require.NoError(c.t, content.WriteBlob(c.ctx, c.walks.content(), key, blob, desc))
	}
	mounts := c.prepare(key, parent)
	_, err := c.walks.differ().Apply(c.ctx, desc, mounts)
	require.NoError(c.t, err)
	tree := c.tree(mounts)
	require.NoError(c.t, c.Remove(c.ctx, key))
	return tree
}

// tree reads what a snapshot shows, as far as a layer tells of it.
func (c *comparison) tree(mounts []mount.Mount) (tree map[string]file) {
	c.t.Helper()
	within(c.t, mounts, func(dir string) { tree = c.readLayered(dir) })
	return tree
}

func (c *comparison) readLayered(dir string) map[string]file {
	c.t.Helper()
	tree, err := readTree(dir)
	require.NoError(c.t, err)
	delete(tree, "/")
	tree = linksInTree(tree)
	for name, f := range tree {
		if f.mode.Type() == fs.ModeSocket { // no layer has one
			delete(tree, name)
			continue
		}
		f.mtime, _, _ = strings.Cut(f.mtime, ".")
		f.xattrs = capabilityIn(f.xattrs)
		tree[name] = f
	}
	return tree
}

// capabilityIn returns the one attribute that containerd writes into a layer, of all that readXattrs has found.
func capabilityIn(xattrs string) string {
	const name = `security.capability="`
	_, value, found := strings.Cut(xattrs, name)
	if !found {
		return ""
	}
	value, _, _ = strings.Cut(value, `" `)
	return name + value
}

// tellsTimes reports whether Lamina tells of a directory of which nothing but the time has changed. Of volumes it does not, and neither
// does the walking differ.
func (c *comparison) tellsTimes() bool { return c.daemon.backend.name == lamina.BackendUnion }

// forgiven returns a tree with the times of those directories whose changes neither has told of: got and theirs have the same.
func forgiven(want, got, theirs map[string]file) map[string]file {
	want = maps.Clone(want)
	for name, f := range want {
		if f.mode.IsDir() && got[name].mtime == theirs[name].mtime {
			f.mtime = theirs[name].mtime
			want[name] = f
		}
	}
	return want
}

// forgetUnseen returns a tree without what the walking differ does not always see: the time of a directory, and a link that has become a
// file of its own, which otherwise is as it was.
func forgetUnseen(tree map[string]file) map[string]file {
	tree = maps.Clone(tree)
	for name, f := range tree {
		if f.nlink, f.sameAs = 0, ""; f.mode.IsDir() {
			f.mtime = ""
		}
		tree[name] = f
	}
	return tree
}

// requireLaminaAlone checks that of all comparisons up to now Lamina has made those that the first containerd was asked for.
func (c *comparison) requireLaminaAlone() {
	c.t.Helper()
	require.False(c.t, strings.Contains(logOf(c.t, c.node), walked), "containerd has compared")
}

// requireShortWay is requireLaminaAlone that checks too that the log would tell otherwise.
func (c *comparison) requireShortWay() {
	c.t.Helper()
	c.requireLaminaAlone()
	require.True(c.t, strings.Contains(logOf(c.t, c.walker), walked))
}

func logOf(t *testing.T, n *node) string {
	t.Helper()
	log, err := os.ReadFile(n.containerd.log)
	require.NoError(t, err)
	return string(log)
}

// labelsOf returns the labels that the content store has for what a comparison has written.
func (c *comparison) labelsOf(from client, desc ocispec.Descriptor) map[string]string {
	c.t.Helper()
	info, err := from.content().Info(c.ctx, desc.Digest)
	require.NoError(c.t, err)
	return info.Labels
}
