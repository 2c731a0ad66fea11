package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/integration/image"
)

const committedName = "docker.io/lamina/committed:test"

// changing is what the container does that becomes an image.
const changing = `set -e
echo changed >/lamina/grows
rm /lamina/mode
rm -r /lamina/names
mkdir /lamina/names
ln -s /lamina/grows /lamina/names/link
chmod 4750 /lamina/owner
echo ready >/ready
while :; do sleep 1; done
`

// looking is what containers of that image do, and looks what they print.
const (
	looking = `cat /lamina/names/link; ls /lamina/names; test ! -e /lamina/mode; stat -c %a /lamina/owner; cat /ready`
	looks   = "changed\nlink\n4750\nready\n"
)

// TestDiffImage makes an image of a container that runs, as nerdctl commit does, and runs it: on Lamina, on containerd's overlayfs, and
// exported and imported on a containerd without Lamina.
func TestDiffImage(t *testing.T) {
	requireRoot(t)
	commitContainer(startComparison(t, union))
}

func commitContainer(c *comparison) {
	c.t.Helper()
	c.importImage(c.snapshotter, "small.tar")
	c.ctr("run", "--detach", image.SmallName, "changing", "sh", "-c", changing)
	require.NoError(c.t, poll(readyTimeout, func() error { return c.inContainer("changing", "ready") }))
	c.commitImage("changing", image.SmallName, committedName)

	require.Equal(c.t, looks, c.ctr("run", "--rm", committedName, "on-lamina", "sh", "-ec", looking))
	out, err := c.tryCtrWith("overlayfs", "run", "--rm", committedName, "on-overlayfs", "sh", "-ec", looking)
	require.NoError(c.t, err)
	require.Equal(c.t, looks, out)
	c.requireExported()
	c.requireCtrDiff()
	c.removeContainer("changing")
	// Unpacking compares nothing: what has been compared was by Lamina.
	c.requireLaminaAlone()
	c.requireNothingLeft()
}

// inContainer returns an error unless the root of a container that runs has a file.
func (c *comparison) inContainer(id, name string) error {
	tasks, err := tasksapi.NewTasksClient(c.ours).Get(c.ctx, &tasksapi.GetRequest{ContainerID: id})
	if err != nil {
		return err
	}
	_, err = os.Stat(filepath.Join("/proc", fmt.Sprint(tasks.Process.Pid), "root", name))
	return err
}

// commitImage makes an image of another one and of what a snapshot changes in it.
func (c *comparison) commitImage(key, from, name string) {
	c.t.Helper()
	store, imageService := c.ours.content(), imagesapi.NewImagesClient(c.ours)
	base, err := imageService.Get(c.ctx, &imagesapi.GetImageRequest{Name: from})
	require.NoError(c.t, err)
	var manifest ocispec.Manifest
	c.read(oci.DescriptorFromProto(base.Image.Target), &manifest)
	var config ocispec.Image
	c.read(manifest.Config, &config)

	layer := c.mustDiff(c.ours, key, diff.WithMediaType(ocispec.MediaTypeImageLayerGzip))
	diffID, err := digest.Parse(c.labelsOf(c.ours, layer)[labels.LabelUncompressed])
	require.NoError(c.t, err)
	config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diffID)
	manifest.Layers = append(manifest.Layers, layer)
	manifest.Config = c.write(store, manifest.Config.MediaType, config, nil)
	refs := map[string]string{"containerd.io/gc.ref.content.config": manifest.Config.Digest.String()}
	for i, l := range manifest.Layers {
		refs[fmt.Sprint("containerd.io/gc.ref.content.l.", i)] = l.Digest.String()
	}
	target := c.write(store, ocispec.MediaTypeImageManifest, manifest, refs)
	_, err = imageService.Create(c.ctx, &imagesapi.CreateImageRequest{
		Image: &imagesapi.Image{Name: name, Target: oci.DescriptorToProto(target)},
	})
	require.NoError(c.t, err)
}

// read decodes a blob; an index is passed through to its first manifest.
func (c *comparison) read(desc ocispec.Descriptor, v any) {
	c.t.Helper()
	if desc.MediaType == ocispec.MediaTypeImageIndex {
		var index ocispec.Index
		require.NoError(c.t, json.Unmarshal(c.blob(c.ours, desc), &index))
		desc = index.Manifests[0]
	}
	require.NoError(c.t, json.Unmarshal(c.blob(c.ours, desc), v))
}

func (c *comparison) write(store content.Store, mediaType string, v any, labels map[string]string) ocispec.Descriptor {
	c.t.Helper()
	b, err := json.Marshal(v)
	require.NoError(c.t, err)
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	require.NoError(c.t, content.WriteBlob(c.ctx, store, desc.Digest.String(), bytes.NewReader(b), desc, content.WithLabels(labels)))
	return desc
}

// requireExported takes the image to a containerd that has no Lamina, and runs it there.
func (c *comparison) requireExported() {
	c.t.Helper()
	archive := filepath.Join(c.dir, "committed.tar")
	c.ctr("images", "export", archive, committedName)
	// Locally: the stream of containerd's transfer service came to its end before its first byte once, "unrecognized image format".
	c.walker.ctr("images", "import", "--local", archive)
	require.Equal(c.t, looks, c.walker.ctr("run", "--rm", committedName, "imported", "sh", "-ec", looking))
}

// requireCtrDiff has ctr compare, which prints a layer.
func (c *comparison) requireCtrDiff() {
	c.t.Helper()
	layer := c.ctr("snapshots", "diff", "--media-type", ocispec.MediaTypeImageLayer, "changing")
	entries := entriesIn(c.t, []byte(layer))
	for _, name := range []string{"lamina/grows", "lamina/.wh.mode", "lamina/names/link", "ready"} {
		require.Contains(c.t, entries, name)
	}
	require.NotContains(c.t, entries, "bin/busybox")
	top := topOf(parentsIn(c.ctr("snapshots", "ls")))
	require.NotEmpty(c.t, c.ctr("snapshots", "diff", top))
	c.kept += 2
}
