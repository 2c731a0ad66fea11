package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/content"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/diff"
	diffproxy "github.com/containerd/containerd/v2/core/diff/proxy"
	"github.com/containerd/containerd/v2/core/leases"
	leasesproxy "github.com/containerd/containerd/v2/core/leases/proxy"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/containerd/v2/pkg/rootfs"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/lamina-snapshotter/lamina/integration/image"
)

// A committer makes images of containers, as containerd's clients do.
type committer struct {
	*node
	content content.Store
	leases  leases.Manager
	differ  diff.Comparer
	images  imagesapi.ImagesClient
	conn    *grpc.ClientConn
}

// newCommitter connects to the node's containerd.
func newCommitter(n *node) *committer {
	n.t.Helper()
	conn, err := grpc.NewClient("unix:"+n.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(n.t, err)
	n.t.Cleanup(func() { _ = conn.Close() })
	return &committer{
		node: n, conn: conn,
		content: contentproxy.NewContentStore(contentapi.NewContentClient(conn)),
		leases:  leasesproxy.NewLeaseManager(leasesapi.NewLeasesClient(conn)),
		differ:  diffproxy.NewDiffApplier(diffapi.NewDiffClient(conn)).(diff.Comparer),
		images:  imagesapi.NewImagesClient(conn),
	}
}

// context is that of the calls of a client.
func (c *committer) context() context.Context {
	return namespaces.WithNamespace(c.t.Context(), namespaceOf(session))
}

func (c *committer) snapshots(name string) snapshots.Snapshotter {
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(c.conn), name)
}

// diff asks containerd for the layer of a snapshot.
func (c *committer) diff(ctx context.Context, key string, opts ...diff.Opt) (ocispec.Descriptor, error) {
	return rootfs.CreateDiff(ctx, key, c.snapshots(c.snapshotter), c.differ, opts...)
}

// commit makes an image of an image and the layer of a container of it.
func (c *committer) commit(from, key, to string) {
	c.t.Helper()
	ctx := c.context()
	layer, err := c.diff(ctx, key)
	require.NoError(c.t, err)
	info, err := c.content.Info(ctx, layer.Digest)
	require.NoError(c.t, err)
	base, err := c.images.Get(ctx, &imagesapi.GetImageRequest{Name: from})
	require.NoError(c.t, err)
	var index ocispec.Index
	var manifest ocispec.Manifest
	var config ocispec.Image
	target := oci.DescriptorFromProto(base.Image.Target)
	if target.MediaType == ocispec.MediaTypeImageIndex {
		c.read(target, &index)
		target = index.Manifests[0]
	}
	c.read(target, &manifest)
	c.read(manifest.Config, &config)

	config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.Digest(info.Labels["containerd.io/uncompressed"]))
	manifest.Layers = append(manifest.Layers, layer)
	manifest.Config = c.write(ocispec.MediaTypeImageConfig, config, nil)
	refs := map[string]string{"containerd.io/gc.ref.content.config": manifest.Config.Digest.String()}
	for i, l := range manifest.Layers {
		refs[fmt.Sprintf("containerd.io/gc.ref.content.l.%d", i)] = l.Digest.String()
	}
	manifest.Versioned = specs.Versioned{SchemaVersion: 2}
	_, err = c.images.Create(ctx, &imagesapi.CreateImageRequest{Image: &imagesapi.Image{
		Name: to, Target: oci.DescriptorToProto(c.write(ocispec.MediaTypeImageManifest, manifest, refs)),
	}})
	require.NoError(c.t, err)
}

func (c *committer) read(desc ocispec.Descriptor, v any) {
	c.t.Helper()
	blob, err := content.ReadBlob(c.context(), c.content, desc)
	require.NoError(c.t, err)
	require.NoError(c.t, json.Unmarshal(blob, v))
}

func (c *committer) write(mediaType string, v any, labels map[string]string) ocispec.Descriptor {
	c.t.Helper()
	blob, err := json.Marshal(v)
	require.NoError(c.t, err)
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	require.NoError(c.t, content.WriteBlob(c.context(), c.content, desc.Digest.String(), strings.NewReader(string(blob)), desc, content.WithLabels(labels)))
	return desc
}

// diffs returns the lines of Lamina's log about comparisons.
func (c *committer) diffs() (lines []string) {
	c.t.Helper()
	log, err := os.ReadFile(c.daemon.log)
	require.NoError(c.t, err)
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, "method=Diff") {
			lines = append(lines, line)
		}
	}
	return lines
}

// last checks that there were that many comparisons, and what Lamina says of the last.
func (c *committer) last(count int, want ...string) {
	c.t.Helper()
	lines := c.diffs()
	require.Len(c.t, lines, count)
	for _, w := range append(want, "namespace="+namespaceOf(session)) {
		require.Contains(c.t, lines[count-1], w)
	}
}

// nothingLeft checks that a comparison that failed has left no ingest, no lease of Lamina's beyond those of the layers that were written,
// and no mount.
func (c *committer) nothingLeft(layers int) {
	c.t.Helper()
	active, err := c.content.ListStatuses(c.context())
	require.NoError(c.t, err)
	require.Empty(c.t, active)
	require.Len(c.t, c.ourLeases(), layers)
	mounts, err := mountsOf(c.dir)
	require.NoError(c.t, err)
	require.Empty(c.t, mounts)
}

func (c *committer) ourLeases() []leases.Lease {
	c.t.Helper()
	all, err := c.leases.List(c.context(), `labels."lamina/made-by"==diff`)
	require.NoError(c.t, err)
	return all
}

// startCommitter runs a container of the small image that writes so many bytes, to its end.
func startCommitter(t *testing.T, size int) *committer {
	t.Helper()
	requireRoot(t)
	c := newCommitter(startNode(t, containerd2, union))
	c.importImage(c.snapshotter, "small.tar")
	c.ctr("run", image.SmallName, "changed", "/bin/sh", "-c", fmt.Sprintf("echo kept >/kept; rm /bin/hello; head -c %d /dev/urandom >/random", size))
	return c
}

// TestDiff has containerd make a layer of a container: Lamina does, for its own snapshots. The image that is made of it runs, and
// what nothing refers to yet is not collected.
func TestDiff(t *testing.T) {
	c := startCommitter(t, 1<<20)
	c.commit(image.SmallName, "changed", "docker.io/lamina/committed:test")
	c.last(1, "call done")
	require.NotContains(t, c.containerd.tail(), "Write failed")
	out := c.ctr("run", "--rm", "docker.io/lamina/committed:test", "again", "/bin/sh", "-c", "cat /kept; ls /bin; wc -c </random")
	require.Regexp(t, "^kept\n", out)
	require.NotContains(t, out, "hello")
	require.Regexp(t, "\n1048576\n$", out)

	// Only our lease keeps a layer that its maker does not.
	c.ctr("images", "delete", "--sync", "docker.io/lamina/committed:test")
	layer, err := c.diff(c.context(), "changed", diff.WithMediaType(ocispec.MediaTypeImageLayerZstd))
	require.NoError(t, err)
	c.ctr("content", "prune", "references")
	_, err = c.content.Info(c.context(), layer.Digest)
	require.NoError(t, err, "the layer was collected")
	for _, l := range c.ourLeases() {
		require.NoError(t, c.leases.Delete(c.context(), l, leases.SynchronousDelete))
	}
	_, err = c.content.Info(c.context(), layer.Digest)
	require.ErrorIs(t, err, errdefs.ErrNotFound, "it was not the lease that kept it")

	// What is not Lamina's is containerd's to compare.
	c.importImage("overlayfs", "small.tar")
	list, err := c.tryCtrWith("overlayfs", "snapshots", "ls")
	require.NoError(t, err)
	_, err = c.tryCtrWith("overlayfs", "snapshots", "prepare", "theirs", topOf(parentsIn(list)))
	require.NoError(t, err)
	_, err = rootfs.CreateDiff(c.context(), "theirs", c.snapshots("overlayfs"), c.differ)
	require.NoError(t, err)
	c.last(3, "call refused", "class=Unimplemented")
	_, err = c.tryCtrWith("overlayfs", "snapshots", "delete", "theirs")
	require.NoError(t, err)
	c.nothingLeft(0)

	// As long as Lamina is stopped, containerd asks nobody else: it says so.
	c.daemon.stop()
	_, err = c.differ.Compare(c.context(), nil, nil)
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	c.daemon.restart()
}

// TestDiffFails has comparisons fail in all the ways in which that does not depend on the container.
func TestDiffFails(t *testing.T) {
	c := startCommitter(t, 64<<20)

	// Cancelled in the midst of it.
	ctx, cancel := context.WithCancel(c.context())
	go func() {
		_ = c.whileWriting(ctx)
		cancel()
	}()
	_, err := c.diff(ctx, "changed")
	require.Error(t, err)
	require.True(t, errors.Is(err, context.Canceled) || errdefs.IsCanceled(err), err)
	require.NoError(t, poll(10*time.Second, func() error { // containerd does not wait for it
		if lines := c.diffs(); len(lines) != 1 || !strings.Contains(lines[0], "class=Canceled") {
			return fmt.Errorf("Lamina says %q", lines)
		}
		return nil
	}))
	c.nothingLeft(0)

	// No room for the layer.
	ingests := filepath.Join(c.dir, "root/io.containerd.content.v1.content/ingest")
	require.NoError(t, unix.Mount("tmpfs", ingests, "tmpfs", 0, "size=8m"))
	_, err = c.diff(c.context(), "changed")
	require.NoError(t, unix.Unmount(ingests, unix.MNT_DETACH))
	require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
	c.last(2, "class=ResourceExhausted", "content store is full")
	c.nothingLeft(0)

	// Killed in the midst of it. What containerd has by then goes with the lease.
	killed := make(chan error, 1)
	go func() {
		err := c.whileWriting(c.context())
		c.daemon.kill()
		killed <- err
	}()
	_, err = c.diff(c.context(), "changed")
	require.NoError(t, <-killed)
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	mounts, err := mountsOf(c.dir)
	require.NoError(t, err)
	require.Empty(t, mounts)
	c.daemon.restart()
	for _, l := range c.ourLeases() {
		require.NoError(t, c.leases.Delete(c.context(), l, leases.SynchronousDelete))
	}
	_, err = c.diff(c.context(), "changed")
	require.NoError(t, err)
	c.last(3, "call done")
	c.nothingLeft(1)
}

// whileWriting waits until a layer is being written.
func (c *committer) whileWriting(ctx context.Context) error {
	return poll(20*time.Second, func() error {
		active, err := c.content.ListStatuses(ctx)
		if err == nil && (len(active) == 0 || active[0].Offset == 0) {
			err = errors.New("nothing is written yet")
		}
		return err
	})
}
