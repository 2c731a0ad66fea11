package dmthin

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
)

// A pool on two devices, named in one order and then in the other.
func TestDevicePlace(t *testing.T) {
	d := newDisks(t, gibibyte, gibibyte/2+8192)
	orders := [][]int{{0, 1}, {1, 0}, {0, 1}}
	testPlaceLife(t, d.control, func() place {
		p := d.place(orders[0]...)
		orders = orders[1:]
		return p
	})
	require.Empty(t, orders)
	begin := d.read(0, 0, headerArea)
	h, err := decodeHeader(begin[:headerSize])
	require.NoError(t, err)
	require.Equal(t, make([]byte, headerArea-headerSize), begin[headerSize:], "the pool wrote where it should not")
	require.Equal(t, make([]byte, headerArea-headerSize), d.read(1, headerSize, headerArea-headerSize))
	require.Zero(t, h.Index)
}

// Data that is written through the data device lies where the layout says, and reads past the end are short.
func TestDevicePlaceMapsSegments(t *testing.T) {
	d := newDisks(t, gibibyte, gibibyte/2)
	p := d.place(0, 1)
	mustMake(t, p)
	devices := mustAttach(t, p)
	first, second := p.layout.Data[0], p.layout.Data[1]
	require.Equal(t, first.Length+second.Length, devices.size)
	f, err := os.OpenFile(dm.Node(testPrefix()+"-tdata"), os.O_WRONLY|unix.O_SYNC, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("12"), int64(first.Length-1))
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.Equal(t, "1", string(d.read(0, int64(first.Offset+first.Length-1), 1)))
	require.Equal(t, "2", string(d.read(1, int64(second.Offset), 1)))

	r, err := openDirect(d.loops[0].path, 0)
	require.NoError(t, err)
	n, err := r.ReadAt(make([]byte, 5000), gibibyte-4000)
	require.Equal(t, 4000, n)
	require.Error(t, err)
	require.NoError(t, r.Close())
}

// A make that was cut short leaves a place that is new, and is made for the same store without force.
func TestDevicePlaceCutShort(t *testing.T) {
	d := newDisks(t, gibibyte, gibibyte, gibibyte)
	all := []int{0, 1, 2}
	p := d.place(all...)
	require.NoError(t, p.open(t.Context()))
	_, headers, err := p.headers(storeUUID)
	require.NoError(t, err)
	require.NoError(t, p.close())
	mark := append([]byte(headerMagic), make([]byte, headerSize-len(headerMagic))...)
	torn := bytes.Clone(mark)
	copy(torn[2*sector:], "the text reached the disk, and its crc did not")
	blank := make([]byte, headerSize)
	for what, blocks := range map[string][3][]byte{
		"nothing":           {blank, blank, blank},
		"one wiped":         {mark, blank, blank},
		"wiped":             {mark, mark, mark},
		"torn":              {mark, mark, torn},
		"one":               {mark, mark, headers[2]},
		"but the first":     {mark, headers[1], headers[2]},
		"the first torn":    {torn, headers[1], headers[2]},
		"made again, wiped": {mark, mark, headers[1]},
	} {
		t.Run(what, func(t *testing.T) {
			write := func() {
				for i, b := range blocks {
					d.write(i, 0, b)
				}
			}
			write()
			p := d.place(2, 0, 1)
			mustMake(t, p)
			require.NoError(t, p.close())
			write()
			p = d.place(all...)
			mustOwner(t, p, "")
			err := p.make(t.Context(), "another")
			if what == "one" || what == "but the first" || what == "the first torn" || what == "made again, wiped" {
				require.ErrorContains(t, err, storeUUID)
			} else {
				require.NoError(t, err)
			}
			require.NoError(t, p.close())
		})
	}
}

func TestDevicePlaceRefuses(t *testing.T) {
	damage := func(d *testDisks) { d.write(0, 600, []byte("x")); d.write(0, headerArea, validSuperblock()) }
	// Of five disks 0 and 1 are of a pool, 2 and 3 of another one of the same store.
	for what, c := range map[string]struct {
		disks  []int
		change func(d *testDisks)
		says   func(path []string) []string
	}{
		"missing": {disks: []int{0}, says: func(path []string) []string {
			return []string{"device 1 of the pool is missing", path[1]}
		}},
		"first missing": {disks: []int{1}, says: func(path []string) []string {
			return []string{path[1], "first device is missing", path[0]}
		}},
		"foreign": {disks: []int{0, 3}, says: func(path []string) []string {
			return []string{path[3] + " is no device of the pool", "missing", path[1]}
		}},
		"first foreign": {disks: []int{1, 3}, says: func(path []string) []string {
			return []string{path[3], "first device is missing"}
		}},
		"extra": {disks: []int{0, 1, 3}, says: func(path []string) []string {
			return []string{path[3] + " is no device of the pool"}
		}},
		"blank": {disks: []int{0, 1, 4}, says: func(path []string) []string {
			return []string{path[4] + " is no device of the pool", "it is blank"}
		}},
		"copy": {disks: []int{0, 1, 4}, change: func(d *testDisks) { d.write(4, 0, d.read(1, 0, headerSize)) }, says: func(path []string) []string {
			return []string{path[1] + " and " + path[4], "both device 1"}
		}},
		"damaged": {disks: []int{0, 1}, change: damage, says: func(path []string) []string {
			return []string{path[0], "header is damaged", "behind it lies data at byte 1048576"}
		}},
		"not ours": {disks: []int{0, 1, 4}, change: func(d *testDisks) { d.write(4, 0, []byte("XFSB")) }, says: func(path []string) []string {
			return []string{path[4], "xfs"}
		}},
	} {
		t.Run(what, func(t *testing.T) {
			d := newDisks(t, gibibyte, gibibyte, gibibyte, gibibyte, gibibyte)
			d.made(0, 1)
			d.made(2, 3)
			if c.change != nil {
				c.change(d)
			}
			p := d.place(c.disks...)
			var path []string
			for _, l := range d.loops {
				path = append(path, l.path)
			}
			says := c.says(path)
			mustRefuse(t, p, says...)
			before := d.read(c.disks[0], 0, headerSize)
			require.Error(t, p.make(t.Context(), storeUUID))
			require.Equal(t, before, d.read(c.disks[0], 0, headerSize))
			p.force = true
			mustRefuse(t, p, says...)
			require.NoError(t, p.make(t.Context(), storeUUID))
			mustOwner(t, p, storeUUID)
		})
	}
}

func TestDevicePlaceShrunk(t *testing.T) {
	d := newDisks(t, gibibyte, gibibyte)
	d.made(0, 1)
	require.NoError(t, os.Truncate(d.files[1], gibibyte+gibibyte/2))
	require.NoError(t, d.loops[1].resize())
	p := d.place(0, 1)
	mustOwner(t, p, storeUUID)
	require.NoError(t, p.close())
	require.NoError(t, os.Truncate(d.files[1], gibibyte-4096))
	require.NoError(t, d.loops[1].resize())
	mustRefuse(t, p, d.loops[1].path+" has shrunk")
}

// What is not blank is overwritten with force, and what could bring an old life back is gone.
func TestDevicePlaceForce(t *testing.T) {
	d := newDisks(t, gibibyte)
	out, err := exec.Command("mkfs.ext4", "-q", d.loops[0].path).CombinedOutput()
	require.NoError(t, err, "%s", out)
	d.write(0, headerArea, validSuperblock())
	d.write(0, gibibyte-512, []byte("EFI PART"))
	p := d.place(0)
	mustRefuse(t, p, d.loops[0].path+" is not blank", "ext4", "pool create --force")
	require.ErrorContains(t, p.make(t.Context(), storeUUID), "not blank")
	p.force = true
	mustMake(t, p)
	require.Equal(t, make([]byte, blankBegin-headerSize), d.read(0, headerSize, blankBegin-headerSize))
	require.Equal(t, make([]byte, blankEnd), d.read(0, gibibyte-blankEnd, blankEnd))

	// With a pool that runs, force changes nothing for its own store, and can do nothing for another.
	devices := mustAttach(t, p)
	mustPool(t, d.control, devices, func(pool *Pool) {
		require.NoError(t, pool.Claim(t.Context(), 3))
		require.NoError(t, p.make(t.Context(), storeUUID))
		require.ErrorIs(t, p.make(t.Context(), "another"), unix.EBUSY)
		mustOwner(t, p, storeUUID)
	})
	wantTransaction(t, p, 3)
	require.NoError(t, p.detach(t.Context()))
	require.NoError(t, p.make(t.Context(), "another"))
	r, err := p.metadata()
	require.NoError(t, err)
	_, err = readSuperblock(r)
	require.ErrorIs(t, err, errNoPool)
	require.NoError(t, r.Close())
	mustOwner(t, p, "another")
}

func TestDevicePlaceInUse(t *testing.T) {
	d := newDisks(t, gibibyte, gibibyte)
	user, err := os.OpenFile(d.loops[1].path, os.O_RDONLY|unix.O_EXCL, 0)
	require.NoError(t, err)
	p := d.place(0, 1)
	p.force = true
	mustOwner(t, p, "")
	err = p.make(t.Context(), storeUUID)
	require.ErrorIs(t, err, unix.EBUSY)
	require.ErrorContains(t, err, d.loops[1].path+" is in use")
	require.Equal(t, make([]byte, headerSize), d.read(0, 0, headerSize), "nothing was written")
	require.NoError(t, user.Close())

	_, _, err = ensureDevice(d.control, testPrefix()+"-holder", []dm.Target{dm.Linear{Dev: d.loops[0].dev}.Target(0, 8)})
	require.NoError(t, err)
	require.ErrorContains(t, p.make(t.Context(), storeUUID), "dm-")
	require.NoError(t, p.remove([]string{testPrefix() + "-holder"}))
	mustMake(t, p)
}

func TestDevicePlacePaths(t *testing.T) {
	d := newDisks(t, gibibyte)
	path := d.loops[0].path
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(path, link))
	for says, paths := range map[string][]string{
		"0 devices":                     nil,
		"/dev/no-such":                  {path, "/dev/no-such"},
		"/dev/null is not a block":      {"/dev/null"},
		d.files[0] + " is not a block":  {d.files[0]},
		"are the same device":           {path, link},
		path + " and " + path + " are ": {path, path},
	} {
		p := d.place()
		p.paths = paths
		mustRefuse(t, p, says)
		require.ErrorContains(t, p.make(t.Context(), storeUUID), says)
	}
	f, err := os.Open(path)
	require.NoError(t, err)
	require.NoError(t, unix.IoctlSetPointerInt(int(f.Fd()), unix.BLKROSET, 1))
	mustRefuse(t, d.place(0), path+" is read-only")
	require.NoError(t, unix.IoctlSetPointerInt(int(f.Fd()), unix.BLKROSET, 0))
	require.NoError(t, f.Close())
	_, err = d.place(0).attach(t.Context(), testPrefix())
	require.ErrorContains(t, err, "no pool yet")
}

// The place is locked whatever the order of its devices, made or not, and attached or not.
func TestDevicePlaceIsLocked(t *testing.T) {
	d := newDisks(t, gibibyte, gibibyte)
	p, second := d.place(0, 1), d.place(1)
	mustMake(t, p)
	mustRefuse(t, second, d.loops[1].path, "another lamina")
	mustAttach(t, p)
	require.NoError(t, p.close())
	p = d.place(1, 0)
	mustOwner(t, p, storeUUID)
	mustAttach(t, p)
}

// A dm device of our name that is another's is left alone; one that is half made is made again.
func TestDevicePlaceLeftovers(t *testing.T) {
	d := newDisks(t, gibibyte)
	p := d.place(0)
	mustMake(t, p)
	name := testPrefix() + "-tdata"
	_, err := d.control.Create(name, "")
	require.NoError(t, err)
	devices := mustAttach(t, p)
	require.NoError(t, d.control.Suspend(name, 0))
	require.Equal(t, devices, mustAttach(t, p))
	info, err := d.control.Info(name)
	require.NoError(t, err)
	require.False(t, info.Suspended)
	require.NoError(t, p.detach(t.Context()))

	_, _, err = ensureDevice(d.control, name, []dm.Target{{Length: 8, Type: "error"}})
	require.NoError(t, err)
	_, err = p.attach(t.Context(), testPrefix())
	require.ErrorContains(t, err, "another device is called "+name)
	_, err = d.control.Info(testPrefix() + "-tmeta")
	require.ErrorIs(t, err, os.ErrNotExist, "what was made is taken away")
	require.NoError(t, p.remove([]string{name}))
}
