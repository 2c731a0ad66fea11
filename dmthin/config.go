package dmthin

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/lamina-snapshotter/lamina/internal/bytesize"
)

// Size is a number of bytes, in a configuration a text such as "100GiB", "64K" or "auto".
type Size = bytesize.Size

// The values of the settings.
const (
	on  = "on"
	off = "off"

	poolLoop   = "loop"
	poolDevice = "device"

	fsExt4 = "ext4"
	fsXFS  = "xfs"
)

// The sizes that a configuration has where nobody sets others, in bytes.
const (
	defaultData   = 100 << 30
	defaultVolume = 10 << 30
	defaultBlock  = 64 << 10

	// defaultShare leaves some room for the rest of the host, which a pool that is full must not take down.
	defaultShare = 0.9
)

// The bounds of block sizes are the kernel's (DATA_DEV_BLOCK_SIZE_MIN_SECTORS and _MAX_SECTORS in
// drivers/md/dm-thin.c).
const (
	minBlock = 64 << 10
	maxBlock = 1 << 30

	minVolumeExt4 = 64 << 20
	minVolumeXFS  = 300 << 20 // mkfs.xfs 6 refuses less
	maxVolumeExt4 = 16 << 40  // 2^32 blocks of 4 KiB
)

// Config says where the pool is and how to use it. The zero value of each setting is its default.
type Config struct {
	// Root is the directory of the place, an absolute path; pool "loop" keeps its files in it.
	Root string `toml:"-"`

	// Store is the uuid of the store that the place is to belong to.
	Store string `toml:"-"`

	// Force lets pool "device" take devices that hold something else, which is lost.
	Force bool `toml:"-"`

	// Pool is "loop", two files under Root, or "device", block devices.
	Pool string `toml:"pool"`

	// DataSize is how large the data file of a pool "loop" is at first, 100GiB by default. The pool grows before it is full, and
	// is never made smaller.
	DataSize Size `toml:"data_size"`

	// MaxSize is how far the data file grows; the metadata is made large enough for it from the start. The default is no bound
	// but HostShare.
	MaxSize Size `toml:"max_size"`

	// HostShare bounds the data file, also when it grows: it is made no larger than this share of the space that is free on
	// the host's file system or that it has already, 0.9 by default.
	HostShare float64 `toml:"host_share"`

	// MetadataSize is how large the metadata is at first; by default what the formula of thin-provisioning-tools gives.
	MetadataSize Size `toml:"metadata_size"`

	// Reserve is how much of the data is kept for containers that run: nothing new is made when no more is free, and the pool
	// cannot grow. By default it is a twentieth of the pool, and at most 4GiB.
	Reserve Size `toml:"reserve"`

	// Devices are the block devices of a pool "device", as /dev/disk/by-id/...; their order does not matter.
	Devices []string `toml:"devices"`

	// FS is the file system of new base layers: "ext4", the default, or "xfs". A layer has the one of its parent.
	FS string `toml:"fs"`

	// VolumeSize is how much a container can write, with all layers below it, unless the label
	// containerd.io/snapshot/max-size says otherwise: 10GiB by default. It takes no space before it is written.
	VolumeSize Size `toml:"volume_size"`

	// BlockSize is what the pool allocates and copies at once: 64KiB, the default, to 1GiB, in multiples of 64KiB. Larger
	// ones need less metadata, and more space for small changes. A pool keeps the one it was made with.
	BlockSize Size `toml:"block_size"`

	// Zeroing is "on" or "off": whether a block is zeroed before a part of it is written. If off, the rest of it shows what
	// was there before, of another container, to whoever can read the device.
	Zeroing string `toml:"zeroing"`

	// Discard is "on" or "off": whether the space of deleted volumes is given back to the host's file system or the device.
	Discard string `toml:"discard"`
}

func (c Config) withDefaults() Config {
	c.Pool = cmp.Or(c.Pool, poolLoop)
	c.DataSize = cmp.Or(c.DataSize, defaultData)
	c.HostShare = cmp.Or(c.HostShare, defaultShare)
	c.FS = cmp.Or(c.FS, fsExt4)
	c.VolumeSize = cmp.Or(c.VolumeSize, defaultVolume)
	c.BlockSize = cmp.Or(c.BlockSize, defaultBlock)
	c.Zeroing = cmp.Or(c.Zeroing, on)
	c.Discard = cmp.Or(c.Discard, on)
	return c
}

// DefaultConfig returns the configuration with each default in its place.
func DefaultConfig() Config {
	c := Config{}.withDefaults()
	c.Devices = []string{} // as it is when it was written to a file and read again
	return c
}

// Validate returns an error that names every setting with an impossible value. It looks at the values alone, not at this
// machine.
func (c Config) Validate() error {
	c = c.withDefaults()
	return errors.Join(c.validateWords(), c.validateDevices(), c.validateSizes())
}

func (c Config) validateWords() error {
	var errs []error
	for _, s := range []struct {
		key, value string
		possible   []string
	}{
		{"pool", c.Pool, []string{poolLoop, poolDevice}},
		{"fs", c.FS, []string{fsExt4, fsXFS}},
		{"zeroing", c.Zeroing, []string{on, off}},
		{"discard", c.Discard, []string{on, off}},
	} {
		if !slices.Contains(s.possible, s.value) {
			errs = append(errs, fmt.Errorf("thin.%s = %q: must be one of %q", s.key, s.value, s.possible))
		}
	}
	return errors.Join(errs...)
}

func (c Config) validateDevices() error {
	if c.Pool == poolDevice && len(c.Devices) == 0 {
		return errors.New(`thin.devices: pool = "device" needs the block devices that it may take`)
	}
	if c.Pool == poolLoop && len(c.Devices) > 0 {
		return errors.New(`thin.devices: they are for pool = "device"`)
	}
	var errs []error
	for _, path := range c.Devices {
		if !filepath.IsAbs(path) {
			errs = append(errs, fmt.Errorf("thin.devices: %q is not an absolute path", path))
		}
	}
	return errors.Join(errs...)
}

func (c Config) validateSizes() error {
	var errs []error
	refuse := func(key string, format string, args ...any) {
		errs = append(errs, fmt.Errorf("thin."+key+": "+format, args...))
	}
	if c.BlockSize < minBlock || c.BlockSize > maxBlock || c.BlockSize%minBlock != 0 {
		refuse("block_size", "%v is not a multiple of 64KiB up to 1GiB", c.BlockSize)
	}
	if c.DataSize < minData {
		refuse("data_size", "%v is less than %v", c.DataSize, Size(minData))
	}
	if c.MaxSize != 0 && c.MaxSize < c.DataSize {
		refuse("max_size", "%v is less than data_size, %v", c.MaxSize, c.DataSize)
	}
	if c.MetadataSize != 0 && (c.MetadataSize < minMetadata || c.MetadataSize > maxMetadata) {
		refuse("metadata_size", "%v is not between %v and %v", c.MetadataSize, Size(minMetadata), Size(maxMetadata))
	}
	if !(c.HostShare > 0 && c.HostShare <= 1) { // so that NaN is refused too
		refuse("host_share", "%v is not above 0 and at most 1", c.HostShare)
	}
	if err := checkVolumeSize(c.FS, uint64(c.VolumeSize)); err != nil {
		refuse("volume_size", "%w", err)
	}
	return errors.Join(errs...)
}

// checkVolumeSize returns an error if the file system cannot have that size, in bytes.
func checkVolumeSize(fs string, size uint64) error {
	least, most := uint64(minVolumeExt4), uint64(maxVolumeExt4)
	if fs == fsXFS {
		least = minVolumeXFS
	}
	if size < least || size > most {
		return fmt.Errorf("%v is not between %v and %v, which %s can have", Size(size), Size(least), Size(most), fs)
	}
	return nil
}
