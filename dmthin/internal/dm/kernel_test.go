package dm

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/integration/guest"
)

// The tests with tDM need root and a kernel with device mapper and thin-pool, and leave nothing behind.

// TestMain runs the tests in a guest where this kernel has no device mapper.
func TestMain(m *testing.M) { os.Exit(guest.Main(m, guest.Options{})) }

// tDM returns an open Control. Where there is none to be had it skips the test, or fails it, as guest.Require says.
func tDM(tb testing.TB) *Control {
	tb.Helper()
	guest.Require(tb)
	c, err := Open()
	if err == nil {
		_, err = c.TargetVersion("thin-pool")
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := c.Close(); err != nil {
			tb.Error(err)
		}
	})
	return c
}

// tName returns a device name that nothing else has.
func tName() string { return "lamina-test-" + rand.Text() }

// tRun runs a program that serves as a witness, and returns what it said.
func tRun(tb testing.TB, name string, args ...string) string {
	tb.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		tb.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// tLoop returns a loop device on a sparse file of its own.
func tLoop(tb testing.TB, bytes int64) DevNum {
	tb.Helper()
	f, err := os.CreateTemp(tb.TempDir(), "loop")
	if err == nil {
		err = errors.Join(f.Truncate(bytes), f.Close())
	}
	if err != nil {
		tb.Fatal(err)
	}
	path := tRun(tb, "losetup", "--find", "--show", f.Name())
	tb.Cleanup(func() { tRun(tb, "losetup", "--detach", path) })
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		tb.Fatal(err)
	}
	return devNum(uint64(st.Rdev)) //nolint:unconvert // 32 bits on mips
}

// tDevice makes a device without a table, and removes it at the end whatever became of it.
func tDevice(tb testing.TB, c *Control, uuid string) Info {
	tb.Helper()
	info, err := c.Create(tName(), uuid)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if now, err := c.Info(info.Name); err == nil && now.Suspended {
			mustDo(tb, c.Resume(info.Name))
		}
		if err := c.Remove(info.Name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			tb.Error(err)
		}
		mustDo(tb, c.RemoveNode(info.Name))
	})
	return info
}

// tActive makes a device with a table and a node.
func tActive(tb testing.TB, c *Control, readOnly bool, targets ...Target) Info {
	tb.Helper()
	info := tDevice(tb, c, "")
	mustDo(tb, c.Load(info.Name, readOnly, targets...))
	mustDo(tb, c.Resume(info.Name))
	mustDo(tb, c.MakeNode(info.Name, info.Dev))
	return info
}

const (
	poolBlock   = 128            // sectors
	poolBlocks  = 1024           // 64 MiB
	poolLow     = poolBlocks - 8 // blocks; an event comes when a ninth is used
	poolSectors = poolBlock * poolBlocks
)

// tPool makes a pool on two loop devices.
func tPool(tb testing.TB, c *Control) (Info, ThinPool) {
	tb.Helper()
	pool := ThinPool{
		Metadata: tLoop(tb, 4<<20), Data: tLoop(tb, poolSectors*512),
		BlockSectors: poolBlock, LowWaterBlocks: poolLow,
		SkipBlockZeroing: true, ErrorIfNoSpace: true,
	}
	return tActive(tb, c, false, pool.Target(poolSectors)), pool
}

func mustDo(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func mustInfo(tb testing.TB, c *Control, name string) Info {
	tb.Helper()
	info, err := c.Info(name)
	mustDo(tb, err)
	return info
}

func wantErrno(tb testing.TB, err error, want error) {
	tb.Helper()
	if !errors.Is(err, want) {
		tb.Errorf("%v, expected %v", err, want)
	}
}

// write writes n bytes at the beginning of a device, and waits until they are there.
func write(name string, n int) error {
	f, err := os.OpenFile(Node(name), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write([]byte(strings.Repeat("lamina.\n", n/8)))
	return errors.Join(err, f.Sync(), f.Close())
}

func TestKernelDevice(t *testing.T) {
	c := tDM(t)
	uuid := "LAMINA-" + rand.Text()
	dev := tDevice(t, c, uuid)
	if dev.UUID != uuid || dev.Dev.IsZero() || dev.ActiveTable || dev.InactiveTable || dev.OpenCount != 0 {
		t.Errorf("%+v", dev)
	}
	_, err := c.Create(dev.Name, "")
	wantErrno(t, err, unix.EBUSY)
	_, err = c.Create(tName(), uuid)
	wantErrno(t, err, unix.EBUSY)
	if deps, err := c.Deps(dev.Name); err != nil || len(deps) != 0 {
		t.Errorf("%v, %v", deps, err)
	}
	if table, err := c.Table(dev.Name); err != nil || len(table) != 0 {
		t.Errorf("%v, %v", table, err)
	}

	mustDo(t, c.Load(dev.Name, true, Target{Length: 8, Type: "error"}))
	if info := mustInfo(t, c, dev.Name); !info.InactiveTable || info.ActiveTable {
		t.Errorf("loaded: %+v", info)
	}
	mustDo(t, c.Clear(dev.Name))
	mustDo(t, c.Clear(dev.Name))
	if info := mustInfo(t, c, dev.Name); info.InactiveTable {
		t.Errorf("cleared: %+v", info)
	}
	mustDo(t, c.Load(dev.Name, true, Target{Length: 8, Type: "error"}))
	mustDo(t, c.Resume(dev.Name))
	if info := mustInfo(t, c, dev.Name); info.InactiveTable || !info.ActiveTable || !info.ReadOnly || info.Suspended {
		t.Errorf("resumed: %+v", info)
	}
	for range 2 {
		mustDo(t, c.Suspend(dev.Name, NoFlush|SkipLockFS))
		if info := mustInfo(t, c, dev.Name); !info.Suspended {
			t.Errorf("suspended: %+v", info)
		}
	}
	said := tRun(t, "dmsetup", "info", "-c", "--noheadings", "-o", "name,uuid,major,minor,attr,open,segments,events", dev.Name)
	want := fmt.Sprintf("%s:%s:%d:%d:L-sr:0:1:%d", dev.Name, uuid, dev.Dev.Major, dev.Dev.Minor, mustInfo(t, c, dev.Name).EventNr)
	if said != want {
		t.Errorf("dmsetup says %s, expected %s", said, want)
	}
	for range 2 {
		mustDo(t, c.Resume(dev.Name))
	}
	mustDo(t, c.Remove(dev.Name))

	for what, err := range map[string]error{
		"info":    func() error { _, err := c.Info(dev.Name); return err }(),
		"remove":  c.Remove(dev.Name),
		"resume":  c.Resume(dev.Name),
		"suspend": c.Suspend(dev.Name, 0),
		"load":    c.Load(dev.Name, false, Target{Length: 8, Type: "error"}),
		"table":   func() error { _, err := c.Table(dev.Name); return err }(),
		"cancel":  c.CancelRemove(dev.Name),
	} {
		if !errors.Is(err, unix.ENXIO) || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s of a device that is gone: %v", what, err)
		}
	}
}

func TestKernelBadTables(t *testing.T) {
	c := tDM(t)
	dev := tDevice(t, c, "")
	for what, targets := range map[string][]Target{
		"none":     {},
		"unknown":  {{Length: 8, Type: "lamina"}},
		"gap":      {{Length: 8, Type: "error"}, {Start: 16, Length: 8, Type: "error"}},
		"params":   {{Length: 8, Type: "linear", Params: "1 2 3"}},
		"no block": {ThinPool{Metadata: dev.Dev, Data: dev.Dev, BlockSectors: 1}.Target(8)},
	} {
		if err := c.Load(dev.Name, false, targets...); err == nil {
			t.Errorf("%s was loaded", what)
		}
	}
	if info := mustInfo(t, c, dev.Name); info.InactiveTable {
		t.Errorf("%+v", info)
	}
}

func TestKernelDeferredRemove(t *testing.T) {
	c := tDM(t)
	dev := tActive(t, c, false, Target{Length: 8, Type: "error"})
	f, err := os.Open(Node(dev.Name))
	mustDo(t, err)
	wantErrno(t, c.Remove(dev.Name), unix.EBUSY)
	for range 2 {
		if pending, err := c.RemoveDeferred(dev.Name); !pending || err != nil {
			t.Error(pending, err)
		}
	}
	if info := mustInfo(t, c, dev.Name); !info.DeferredRemove || info.OpenCount != 1 {
		t.Errorf("%+v", info)
	}
	for range 2 {
		mustDo(t, c.CancelRemove(dev.Name))
	}
	mustDo(t, f.Close())
	if info := mustInfo(t, c, dev.Name); info.DeferredRemove || info.OpenCount != 0 {
		t.Errorf("%+v", info)
	}
	if pending, err := c.RemoveDeferred(dev.Name); pending || err != nil {
		t.Error(pending, err)
	}
	_, err = c.Info(dev.Name)
	wantErrno(t, err, unix.ENXIO)

	dev = tActive(t, c, false, Target{Length: 8, Type: "error"})
	f, err = os.Open(Node(dev.Name))
	mustDo(t, err)
	if pending, err := c.RemoveDeferred(dev.Name); !pending || err != nil {
		t.Error(pending, err)
	}
	mustDo(t, f.Close())
	// The kernel removes it from a work queue.
	for nr := uint32(0); err == nil; {
		nr, err = c.WaitEvent(t.Context(), dev.Name, nr)
	}
	wantErrno(t, err, unix.ENXIO)
}

// TestKernelManyDevices makes more devices than the first buffer holds.
func TestKernelManyDevices(t *testing.T) {
	c := tDM(t)
	want := map[string]Device{}
	for range 350 {
		info := tDevice(t, c, "LAMINA-"+rand.Text())
		want[info.Name] = Device{Name: info.Name, UUID: info.UUID, Dev: info.Dev}
	}
	list, err := c.List()
	mustDo(t, err)
	version, err := c.Version()
	mustDo(t, err)
	for _, d := range list {
		w, ours := want[d.Name]
		if !version.AtLeast(4, 45) {
			w.UUID = ""
		}
		if ours && d != w {
			t.Errorf("%+v, expected %+v", d, w)
		}
		delete(want, d.Name)
	}
	if len(want) != 0 {
		t.Errorf("%d devices are not in the list", len(want))
	}
	if witness := strings.Count(tRun(t, "dmsetup", "ls"), "\n") + 1; witness != len(list) {
		t.Errorf("%d devices, dmsetup says %d", len(list), witness)
	}
}

// TestKernelManyTargets has more targets and dependencies than the first buffer holds.
func TestKernelManyTargets(t *testing.T) {
	c := tDM(t)
	var targets []Target
	var parts []DevNum
	for i := range uint64(150) {
		part := tActive(t, c, false, Target{Length: 8, Type: "error"})
		parts = append(parts, part.Dev)
		targets = append(targets, Target{Start: 8 * i, Length: 8, Type: "linear", Params: part.Dev.String() + " 0"})
	}
	whole := tActive(t, c, false, targets...)
	t.Cleanup(func() { mustDo(t, c.Remove(whole.Name)) }) // before its parts
	if got, err := c.Table(whole.Name); err != nil || !slices.Equal(got, targets) {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := c.TableStatus(whole.Name, false); err != nil || len(got) != len(targets) {
		t.Errorf("%v, %v", got, err)
	}
	deps, err := c.Deps(whole.Name)
	slices.SortFunc(deps, func(a, b DevNum) int { return int(a.Minor) - int(b.Minor) })
	slices.SortFunc(parts, func(a, b DevNum) int { return int(a.Minor) - int(b.Minor) })
	if err != nil || !slices.Equal(deps, parts) {
		t.Errorf("%v, %v", deps, err)
	}
}

func TestKernelVersions(t *testing.T) {
	c := tDM(t)
	types, err := c.ListVersions()
	mustDo(t, err)
	if witness := strings.Count(tRun(t, "dmsetup", "targets"), "\n") + 1; witness != len(types) {
		t.Errorf("%v, dmsetup says %d", types, witness)
	}
	v, err := c.TargetVersion("thin")
	if err != nil || !slices.Contains(types, TargetType{"thin", v}) {
		t.Errorf("%v, %v in %v", v, err, types)
	}
	if _, err := c.TargetVersion("lamina"); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
}

// TestKernelCapture writes the replies that the unit tests and fuzz targets read, if LAMINA_CAPTURE names a directory.
func TestKernelCapture(t *testing.T) {
	dir := os.Getenv("LAMINA_CAPTURE")
	if dir == "" {
		t.Skip("LAMINA_CAPTURE is not set")
	}
	c := tDM(t)
	pool, _ := tPool(t, c)
	mustDo(t, c.CreateThin(pool.Name, 1))
	thin := tActive(t, c, false, Thin{Pool: pool.Dev, ID: 1}.Target(2048))
	t.Cleanup(func() { mustDo(t, c.Remove(thin.Name)) })
	mustDo(t, write(thin.Name, 1<<16))
	tDevice(t, c, "LAMINA-"+rand.Text())
	capture := ""
	recorder := newControl(func(cmd uint, buf []byte) error {
		err := c.wire(cmd, buf)
		if rep, bad := unmarshal(buf); bad == nil {
			err = errors.Join(err, os.WriteFile(filepath.Join(dir, capture+".reply"), buf[:max(len(rep.data), 0)+unix.SizeofDmIoctl], 0o600))
		}
		return err
	})
	for name, call := range map[string]func() error{
		"version":     func() error { _, err := recorder.Version(); return err },
		"list":        recorder.anyList,
		"versions":    recorder.anyVersions,
		"deps":        func() error { _, err := recorder.Deps(pool.Name); return err },
		"info":        func() error { _, err := recorder.Info(thin.Name); return err },
		"pool-table":  func() error { _, err := recorder.Table(pool.Name); return err },
		"pool-status": func() error { _, err := recorder.PoolStatus(pool.Name); return err },
		"thin-status": func() error { _, err := recorder.ThinStatus(thin.Name); return err },
	} {
		capture = name
		mustDo(t, call())
	}
}
