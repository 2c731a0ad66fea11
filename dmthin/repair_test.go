package dmthin

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/integration/guest"
)

// testMetadata are the metadata of a stopped pool, wherever they lie.
type testMetadata struct {
	path   string
	offset int64
}

func (m testMetadata) read(t *testing.T, block uint64) []byte {
	t.Helper()
	f, err := os.Open(m.path)
	require.NoError(t, err)
	defer f.Close()
	b := make([]byte, metadataBlock)
	_, err = f.ReadAt(b, m.offset+int64(block)*metadataBlock)
	require.NoError(t, err)
	return b
}

func (m testMetadata) write(t *testing.T, block uint64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(m.path, os.O_WRONLY, 0)
	require.NoError(t, err)
	defer f.Close()
	_, err = f.WriteAt(b, m.offset+int64(block)*metadataBlock)
	require.NoError(t, err)
	require.NoError(t, f.Sync())
}

func (m testMetadata) setNeedsCheck(t *testing.T) {
	t.Helper()
	b := m.read(t, 0)
	setFlags(b, flagNeedsCheck)
	m.write(t, 0, b)
}

// damageSpaceMap makes the map of the data's blocks unreadable: it can be made again from the volumes.
func (m testMetadata) damageSpaceMap(t *testing.T) {
	t.Helper()
	b := m.read(t, 0)
	m.write(t, binary.LittleEndian.Uint64(b[offsetDataSpace+16:]), make([]byte, metadataBlock)) // its bitmaps' root
}

func (m testMetadata) damageSuperblock(t *testing.T) {
	t.Helper()
	b := m.read(t, 0)
	b[offsetTransaction]++
	m.write(t, 0, b)
}

// Whatever the kernel refuses or cannot read of a pool's metadata is seen, said, and repaired, and no content is lost.
func TestRepairMetadata(t *testing.T) {
	places := map[string]func(t *testing.T) (Config, testMetadata){
		"loop": func(t *testing.T) (Config, testMetadata) {
			t.Helper()
			guest.Require(t)
			c := Config{Root: filepath.Join(t.TempDir(), "thin"), DataSize: minData}
			return c, testMetadata{path: filepath.Join(c.Root, "metadata")}
		},
		"device": func(t *testing.T) (Config, testMetadata) {
			t.Helper()
			disks := newDisks(t, 512<<20)
			c := Config{Root: filepath.Join(t.TempDir(), "thin"), Pool: poolDevice, Devices: []string{disks.loops[0].path}}
			return c, testMetadata{path: disks.loops[0].path, offset: headerArea}
		},
	}
	for where, prepare := range places {
		t.Run(where, func(t *testing.T) {
			c, m := prepare(t)
			c.Store, c.VolumeSize, c.MetadataSize = storeUUID, 256<<20, 4*mebibyte
			open := func() (*Backend, error) {
				b, err := Open(t.Context(), c)
				require.NoError(t, err)
				_, _, err = b.Owner(t.Context())
				if err == nil {
					err = b.Claim(t.Context(), storeUUID, 7)
				}
				if err != nil {
					require.NoError(t, b.Close())
				}
				return b, err
			}
			b, err := open()
			require.NoError(t, err)
			name, err := b.Template(nil)
			require.NoError(t, err)
			size, err := b.MakeTemplate(t.Context(), 1, name)
			require.NoError(t, err)
			template := Content{ID: 1, Size: size}
			tb := &testBackend{b, template}
			content := tb.mustMake(t, 2, template, nil)
			dir, unmount := tb.mount(t, content, true)
			writeFile(t, filepath.Join(dir, "file"), "kept")
			unmount()
			require.NoError(t, b.Close())

			for _, damage := range []struct {
				what string
				do   func(*testing.T)
				kept bool
			}{
				{"needs check", m.setNeedsCheck, false},
				{"space map", m.damageSpaceMap, true},
				// At the end: without a superblock thin_repair 0.9.0 crashes on metadata that it has not written itself.
				{"superblock", m.damageSuperblock, true},
			} {
				what := damage.what
				damage.do(t)
				b, err := open()
				if err == nil { // the kernel reads the space map when it first needs a block
					tb := &testBackend{b, template}
					_, err = touch(t, tb.device(t, content), 200*mebibyte, 1)
					require.ErrorIs(t, err, unix.EIO)
					_, err = b.Make(t.Context(), Content{ID: 3}, []Content{template}, nil)
					require.True(t, errdefs.IsUnavailable(err), err)
					survey, failed := b.Survey(t.Context())
					require.NoError(t, failed)
					require.True(t, survey.Pool.NeedsCheck)
					require.NoError(t, b.Close())
					_, err = open()
				}
				require.True(t, errdefs.IsUnavailable(err), "%s: %v", what, err)
				require.ErrorContains(t, err, "lamina doctor --repair", what)

				repair, err := RepairMetadata(t.Context(), c, 7)
				require.NoError(t, err, what)
				require.Equal(t, 2, repair.Volumes, what)
				require.Empty(t, repair.Lost, what)
				require.Equal(t, damage.kept, repair.Kept != "", what)
				if damage.kept {
					require.FileExists(t, repair.Kept)
				}
				survey, err := Look(t.Context(), c)
				require.NoError(t, err)
				require.NoError(t, survey.Unread)
				require.False(t, survey.Pool.NeedsCheck)
				require.EqualValues(t, 7, survey.Pool.Start)

				b, err = open()
				require.NoError(t, err, what)
				tb = &testBackend{b, template}
				dir, unmount = tb.mount(t, content, true)
				require.Equal(t, "kept", readFile(t, filepath.Join(dir, "file")), what)
				writeFile(t, filepath.Join(dir, "more"), what)
				unmount()
				require.NoError(t, b.Close())
			}
			if where == "device" { // a repair that was cut short while it wrote
				b := make([]byte, 4*mebibyte)
				f, err := os.Open(m.path)
				require.NoError(t, err)
				_, err = f.ReadAt(b, m.offset)
				require.NoError(t, errors.Join(err, f.Close(), os.WriteFile(filepath.Join(c.Root, "metadata.repaired"), b, 0o600)))
				m.setNeedsCheck(t)
				for block := uint64(1); block < 200; block++ {
					m.write(t, block, make([]byte, metadataBlock))
				}
			}
			repair, err := RepairMetadata(t.Context(), c, 7)
			require.NoError(t, err)
			require.NoFileExists(t, filepath.Join(c.Root, "metadata.repaired"))
			require.Equal(t, Repair{Volumes: 2}, repair, "there is nothing to do")
		})
	}
}
