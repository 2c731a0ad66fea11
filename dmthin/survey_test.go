package dmthin

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/integration/guest"
)

// A pool on several devices looks the same from within and, when it does not run, from outside: the volumes, and the file
// systems on them, which lie on one device or the other.
func TestLookAtDevices(t *testing.T) {
	guest.Require(t)
	disks := newDisks(t, 64*mebibyte, 300*mebibyte)
	c := Config{
		Root: filepath.Join(t.TempDir(), "thin"), Store: storeUUID, Pool: poolDevice,
		Devices: []string{disks.loops[0].path, disks.loops[1].path}, VolumeSize: 1 << 30,
	}
	before, err := Look(t.Context(), c)
	require.NoError(t, err)
	require.Equal(t, &Survey{}, before, "there is nothing yet")

	b, err := Open(t.Context(), c)
	require.NoError(t, err)
	require.NoError(t, b.Claim(t.Context(), storeUUID, 7))
	name, err := b.Template(nil)
	require.NoError(t, err)
	size, err := b.MakeTemplate(t.Context(), 1, name)
	require.NoError(t, err)
	for id := uint64(2); id <= 4; id++ { // each with blocks of its own, so that the first device is full
		_, err := b.Make(t.Context(), Content{ID: id}, []Content{{ID: 1, Size: size}}, nil)
		require.NoError(t, err)
		tb := &testBackend{b, Content{ID: 1, Size: size}}
		dir, unmount := tb.mount(t, Content{ID: id, Size: size}, true)
		writeFile(t, filepath.Join(dir, "large"), string(make([]byte, 10*mebibyte)))
		unmount()
		_, err = b.Freeze(t.Context(), []Content{{ID: id, Size: size}, {ID: 1, Size: size}})
		require.NoError(t, err)
	}
	within, err := b.Survey(t.Context())
	require.NoError(t, err)
	require.NoError(t, within.Unread)
	require.Len(t, within.Volumes, 4)
	for _, v := range within.Volumes {
		require.NoError(t, v.FSProblem)
		require.Equal(t, "ext4", v.FS)
		require.Equal(t, size, v.FSSize)
	}
	require.NoError(t, b.Close())

	outside, err := Look(t.Context(), c)
	require.NoError(t, err)
	require.NoError(t, outside.Unread)
	require.Equal(t, within.Volumes, outside.Volumes)
	require.EqualValues(t, 7, outside.Pool.Start)
	require.Equal(t, within.Pool.Data, outside.Pool.Data)
	require.Equal(t, within.Pool.Metadata.Total, outside.Pool.Metadata.Total)
	require.False(t, outside.Pool.Held)
	require.Empty(t, outside.Devices)
}

// A look at a large pool is fast, also for the superblocks of all its volumes.
func TestLookAtALargePool(t *testing.T) {
	const many = 10_000
	b := openBackend(t, Config{MetadataSize: 128 << 20})
	require.NoError(t, b.Close())
	var xml strings.Builder
	fmt.Fprintf(&xml, `<superblock uuid="" time="0" transaction="1" version="2" data_block_size="128" nr_data_blocks="16384">`)
	for id := range many {
		fmt.Fprintf(&xml, `<device dev_id="%d" mapped_blocks="1" transaction="0" creation_time="0" snap_time="0">`+
			`<single_mapping origin_block="0" data_block="%d" time="0"/></device>`, id, id)
	}
	xml.WriteString("</superblock>")
	file := filepath.Join(t.TempDir(), "xml")
	require.NoError(t, os.WriteFile(file, []byte(xml.String()), 0o600))
	out, err := exec.Command("thin_restore", "-i", file, "-o", filepath.Join(b.config.Root, "metadata")).CombinedOutput()
	require.NoError(t, err, "%s", out)
	begun := time.Now()
	s, err := Look(t.Context(), b.config)
	t.Logf("%d volumes in %v", many, time.Since(begun))
	require.NoError(t, err)
	require.NoError(t, s.Unread)
	require.Len(t, s.Volumes, many)
	require.Less(t, time.Since(begun), 20*time.Second)
}
