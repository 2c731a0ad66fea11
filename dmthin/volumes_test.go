package dmthin

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// thinLs is what thin_ls says of the running pool, the independent witness.
func (p *testPool) thinLs(t *testing.T) (volumes []volumeDetails) {
	t.Helper()
	require.NoError(t, p.control.ReserveMetadataSnap(p.name))
	out, err := exec.Command("thin_ls", "--no-headers", "-m", "-o", "DEV,MAPPED_BLOCKS,CREATE_TIME", p.metadata.path).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.NoError(t, p.control.ReleaseMetadataSnap(p.name))
	for line := range strings.Lines(string(out)) {
		var v volumeDetails
		_, err := fmt.Sscan(line, &v.ID, &v.Mapped, &v.Created)
		require.NoError(t, err, "%q", line)
		volumes = append(volumes, v)
	}
	return volumes
}

func (p *testPool) mustVolumes(t *testing.T) []volumeDetails {
	t.Helper()
	volumes, err := p.Volumes(t.Context())
	require.NoError(t, err)
	return volumes
}

func TestVolumes(t *testing.T) {
	p := newPool(t)
	ctx := t.Context()
	require.Empty(t, p.mustVolumes(t))
	require.NoError(t, p.Create(ctx, 1<<24-1))
	require.Equal(t, []volumeDetails{{ID: 1<<24 - 1}}, p.mustVolumes(t))
	require.NoError(t, p.Delete(ctx, 1<<24-1, 0, false))
	require.Empty(t, p.mustVolumes(t))
	require.Empty(t, p.thinLs(t))

	require.NoError(t, p.Create(ctx, 1))
	p.write(t, 1, "some")
	for id := uint32(2); id <= 1000; id++ {
		require.NoError(t, p.Snapshot(ctx, id, 1))
	}
	p.write(t, 500, "more")
	require.Len(t, p.mustVolumes(t), 1000)
	require.Equal(t, p.thinLs(t), p.mustVolumes(t))
	for id := uint32(3); id <= 1000; id++ {
		if id%3 == 0 || id > 400 && id < 700 {
			require.NoError(t, p.Delete(ctx, id, 0, false))
		}
	}
	require.Equal(t, p.thinLs(t), p.mustVolumes(t))
}

// The list is of now, also beside a metadata snapshot of then, when several ask at once, and when it is read
// through a metadata snapshot.
func TestVolumesBesideSnapshot(t *testing.T) {
	p := newPool(t)
	ctx := t.Context()
	require.NoError(t, p.Create(ctx, 1))
	require.NoError(t, p.control.ReserveMetadataSnap(p.name))
	require.NoError(t, p.Create(ctx, 2))
	require.Equal(t, []volumeDetails{{ID: 1}, {ID: 2}}, p.mustVolumes(t))

	errs := make(chan error)
	for range 10 {
		go func() {
			_, err := p.Volumes(ctx)
			errs <- err
		}()
	}
	for range 10 {
		require.NoError(t, <-errs)
	}

	require.NoError(t, p.control.ReleaseMetadataSnap(p.name), "it was not touched")

	p.write(t, 1, "some")
	device, err := openDirect(p.metadataPath, os.O_RDONLY)
	require.NoError(t, err)
	var listed []volumeDetails
	require.NoError(t, p.withMetadataSnap(device, func(metadata io.ReaderAt, sb superblock) (err error) {
		listed, err = readDetails(ctx, metadata, sb)
		return err
	}))
	require.NoError(t, device.Close())
	require.Len(t, listed, 2)
	p.write(t, 1, "more")

	// Given up, and with a device that cannot be read.
	ended, cancel := context.WithCancel(ctx)
	cancel()
	_, err = p.Volumes(ended)
	require.ErrorIs(t, err, context.Canceled)
	p.metadataPath = "/dev/null"
	_, err = p.Volumes(ctx)
	require.Error(t, err)
	p.metadataPath = p.metadata.path
	p.mustVolumes(t)
}

// The list is fast enough to be asked for at each start.
func TestVolumesOfALargePool(t *testing.T) {
	const many = 10_000
	p := newPool(t)
	stopped, err := p.Stop(t.Context())
	require.NoError(t, err)
	require.True(t, stopped)
	var xml strings.Builder
	fmt.Fprintf(&xml, `<superblock uuid="" time="0" transaction="1" version="2" data_block_size="%d" nr_data_blocks="%d">`,
		testBlock/sector, testData/testBlock)
	for id := range many {
		fmt.Fprintf(&xml, `<device dev_id="%d" mapped_blocks="0" transaction="0" creation_time="0" snap_time="0"></device>`, id)
	}
	xml.WriteString("</superblock>")
	file := filepath.Join(t.TempDir(), "xml")
	require.NoError(t, os.WriteFile(file, []byte(xml.String()), 0o600))
	out, err := exec.Command("thin_restore", "-i", file, "-o", p.metadata.path).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.NoError(t, p.control.Close())
	p.start(t)
	begun := time.Now()
	volumes := p.mustVolumes(t)
	t.Logf("%d volumes in %v", many, time.Since(begun))
	require.Len(t, volumes, many)
}
