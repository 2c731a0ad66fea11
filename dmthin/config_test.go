package dmthin

import (
	"math"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

func TestConfigNamesTheKey(t *testing.T) {
	require.NoError(t, Config{}.Validate())
	require.NoError(t, DefaultConfig().Validate())
	for key, change := range map[string]func(*Config){
		"thin.pool":          func(c *Config) { c.Pool = "lvm" },
		"thin.fs":            func(c *Config) { c.FS = "btrfs" },
		"thin.zeroing":       func(c *Config) { c.Zeroing = "yes" },
		"thin.discard":       func(c *Config) { c.Discard = "true" },
		"thin.devices: pool": func(c *Config) { c.Pool = "device" },
		"thin.devices: they": func(c *Config) { c.Devices = []string{"/dev/sdb"} },
		`thin.devices: "sd`:  func(c *Config) { c.Pool, c.Devices = "device", []string{"sdb"} },
		"thin.block_size":    func(c *Config) { c.BlockSize = 96 << 10 },
		"thin.data_size":     func(c *Config) { c.DataSize = 1 << 20 },
		"thin.max_size":      func(c *Config) { c.MaxSize = 1 << 30 },
		"thin.metadata_size": func(c *Config) { c.MetadataSize = 1 << 20 },
		"thin.host_share":    func(c *Config) { c.HostShare = math.NaN() },
		"thin.volume_size":   func(c *Config) { c.FS, c.VolumeSize = "xfs", 100<<20 },
	} {
		c := DefaultConfig()
		change(&c)
		require.ErrorContains(t, c.Validate(), key)
	}
}

func TestSize(t *testing.T) {
	for text, want := range map[string]Size{
		"100GiB": 100 << 30, "100G": 100 << 30, "64k": 64 << 10, "512": 512, "1.5G": 3 << 29, "auto": 0, "2t": 2 << 40,
	} {
		var s Size
		require.NoError(t, s.UnmarshalText([]byte(text)))
		require.Equal(t, want, s, text)
		again, err := s.MarshalText()
		require.NoError(t, err)
		require.NoError(t, s.UnmarshalText(again))
		require.Equal(t, want, s, string(again))
	}
	for _, text := range []string{"", "0", "-1G", "much", "1X", strings.Repeat("9", 40)} {
		var s Size
		require.Error(t, s.UnmarshalText([]byte(text)), text)
	}
}

func TestTemplateName(t *testing.T) {
	b := &Backend{config: DefaultConfig()}
	label := func(size string) map[string]string { return map[string]string{snapshots.LabelSnapshotMaxSize: size} }
	for size, want := range map[string]uint64{"1073741824": 1 << 30, "1073745919": 1 << 30} {
		name, err := b.Template(label(size))
		require.NoError(t, err)
		kind, got, err := parseTemplate(name)
		require.NoError(t, err)
		require.Equal(t, ext4{}, kind)
		require.Equal(t, want, got)
	}
	for _, size := range []string{"", "0", "-1", "10G", "1", "9223372036854775807", "0x100000000"} {
		_, err := b.Template(label(size))
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument, size)
	}
	for _, name := range []string{"", "ext4", "ext4/x/1", "ext9/1073741824/1", "ext4/1073741824/1/2"} {
		_, _, err := parseTemplate(name)
		require.Error(t, err, name)
	}
}
