package integration

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/dmthin"
	"github.com/lamina-snapshotter/lamina/doctor"
	"github.com/lamina-snapshotter/lamina/integration/guest"
	"github.com/lamina-snapshotter/lamina/metadata"
)

// A thinPatient is a root of volumes that the doctor is sent to, in this process.
type thinPatient struct {
	patient
	backend backend
}

// newThinPatient has a chain of two layers, an active snapshot and a view.
func newThinPatient(t *testing.T, fs string) thinPatient {
	t.Helper()
	p := thinPatient{
		patient{t, "", filepath.Join(mustTempDir(t), "root")},
		backend{name: lamina.BackendThin, thin: dmthin.Config{FS: fs, DataSize: 2 << 30, VolumeSize: 1 << 30}},
	}
	p.running(func(h *lamina.Host, sn *host) {
		sn.layer("one", "", []byte("1"))
		sn.layer("two", "one", []byte("2"))
		sn.prepare("active", "one", nil)
		_, err := sn.View(t.Context(), "view", "one")
		require.NoError(t, err)
		require.Empty(t, p.live(h))
	})
	return p
}

// running opens Lamina on the root while fn runs.
func (p thinPatient) running(fn func(h *lamina.Host, sn *host)) {
	p.t.Helper()
	h, err := lamina.Open(p.t.Context(), p.backend.config(p.root))
	require.NoError(p.t, err)
	sn, err := h.Snapshotter(lamina.DefaultName)
	require.NoError(p.t, err)
	fn(h, &host{sn, p.t})
	require.NoError(p.t, h.Close())
}

// live returns what is found beside the daemon.
func (p thinPatient) live(h *lamina.Host) (found []doctor.Code) {
	p.t.Helper()
	require.NoError(p.t, h.Examine(p.t.Context(), func(f doctor.Finding) {
		p.t.Log(f)
		found = append(found, f.Code)
	}))
	return found
}

// findings returns what is found without a daemon, and checks that nothing was
// changed by the look.
func (p thinPatient) findings() (found []doctor.Code) {
	p.t.Helper()
	before, devices := treeDigest(p.t, p.root), volumes()
	require.NoError(p.t, lamina.Examine(p.t.Context(), p.backend.config(p.root), func(f doctor.Finding) {
		p.t.Log(f)
		found = append(found, f.Code)
	}))
	require.Equal(p.t, before, treeDigest(p.t, p.root), "it changed something")
	require.Equal(p.t, devices, volumes())
	return found
}

// repair cures what it may.
func (p thinPatient) repair() {
	p.t.Helper()
	require.NoError(p.t, lamina.Repair(p.t.Context(), p.backend.config(p.root), doctor.Repair{
		RemoveLost: true,
		Say:        func(text string) { p.t.Log("repair:", text) },
		Ask:        func(string) (bool, error) { return true, nil },
	}))
}

func (p thinPatient) device(key string) uint32 { return p.record(key).Placement.Device }

// prefix begins the names of the devices.
func (p thinPatient) prefix() (prefix string) {
	p.withStore(metadata.Options{ReadOnly: true}, func(s *metadata.Store) error {
		prefix = ourDevices + s.UUID()[:8]
		return nil
	})
	return prefix
}

// message sends the pool a message behind Lamina's back.
func (p thinPatient) message(prefix, format string, args ...any) {
	p.t.Helper()
	_, err := dmsetup("message", prefix+"-pool", "0", fmt.Sprintf(format, args...))
	require.NoError(p.t, err)
}

// overwrite changes the first bytes of a volume behind Lamina's back, and returns
// what undoes that.
func (p thinPatient) overwrite(prefix string, id uint32, change func(head []byte)) {
	p.t.Helper()
	const name = "doctor-test"
	_, err := dmsetup("create", name, "--table", fmt.Sprintf("0 8192 thin /dev/mapper/%s-pool %d", prefix, id))
	require.NoError(p.t, err)
	f, err := os.OpenFile("/dev/mapper/"+name, os.O_RDWR, 0)
	require.NoError(p.t, err)
	head := make([]byte, 4096)
	_, err = f.ReadAt(head, 0)
	require.NoError(p.t, err)
	change(head)
	_, err = f.WriteAt(head, 0)
	require.NoError(p.t, errors.Join(err, f.Sync(), f.Close()))
	_, err = dmsetup("remove", "--retry", name)
	require.NoError(p.t, err)
}

// TestThinDoctorVolumes damages a pool in every way: volumes without record,
// records without volume, a template that is gone, file systems.
func TestThinDoctorVolumes(t *testing.T) {
	guest.Require(t)
	p := newThinPatient(t, "ext4")
	require.Empty(t, p.findings())
	p.requireUsage()
	prefix, one, two := p.prefix(), p.device("one"), p.device("two")

	p.running(func(h *lamina.Host, _ *host) {
		p.message(prefix, "create_snap 900 %d", two)
		require.Equal(t, []doctor.Code{doctor.ContentSurplus}, p.live(h))
		p.message(prefix, "reserve_metadata_snap")
	})
	require.ElementsMatch(t, []doctor.Code{doctor.ContentSurplus, doctor.SnapshotHeld}, p.findings())
	p.repair()
	require.Empty(t, p.findings())
	p.forget("active")
	require.Equal(t, []doctor.Code{doctor.TrashLeft}, p.findings())
	p.repair()
	require.Empty(t, p.findings())

	p.running(func(_ *lamina.Host, sn *host) { sn.layer("three", "two", []byte("3")) })
	three := p.device("three")
	p.running(func(h *lamina.Host, _ *host) {
		p.overwrite(prefix, one, func(head []byte) { head[1024+0x3A] |= 2 })
		p.overwrite(prefix, two, func(head []byte) { binary.LittleEndian.PutUint32(head[1024+4:], 1<<20) })
		p.overwrite(prefix, three, func(head []byte) { clear(head) })
		require.ElementsMatch(t, []doctor.Code{doctor.FilesystemErrors, doctor.FilesystemSize, doctor.FilesystemUnknown}, p.live(h))
	})
	require.ElementsMatch(t, []doctor.Code{doctor.FilesystemErrors, doctor.FilesystemSize, doctor.FilesystemUnknown}, p.findings())
	p.repair() // removes three
	p.running(func(*lamina.Host, *host) {
		p.overwrite(prefix, one, func(head []byte) { head[1024+0x3A] &^= 2 })
		p.overwrite(prefix, two, func(head []byte) { binary.LittleEndian.PutUint32(head[1024+4:], 1<<18) })
	})
	require.Empty(t, p.findings())

	p.running(func(h *lamina.Host, _ *host) {
		p.message(prefix, "delete %d", two)
		p.message(prefix, "delete 1")
		require.ElementsMatch(t, []doctor.Code{doctor.ContentLost, doctor.TemplateMissing}, p.live(h))
	})
	require.ElementsMatch(t, []doctor.Code{doctor.ContentLost, doctor.TemplateMissing}, p.findings())
	p.repair()
	require.Empty(t, p.findings())
	p.running(func(_ *lamina.Host, sn *host) {
		_, err := sn.Stat(t.Context(), "two")
		require.Error(t, err)
		sn.layer("new", "", []byte("on the template that was made again"))
		sn.prepare("upon", "one", nil)
		sn.requireFile("upon", "one", "1")
	})
	require.Empty(t, p.findings())
	checkPool(t, p.root)
}

// requireUsage checks that the volumes have the same of the pool by the daemon and
// without one, and that children share with their parents.
func (p thinPatient) requireUsage() {
	p.t.Helper()
	var within, without []doctor.Usage
	p.running(func(h *lamina.Host, _ *host) {
		require.NoError(p.t, h.Usage(p.t.Context(), func(u doctor.Usage) { within = append(within, u) }))
	})
	require.NoError(p.t, lamina.Usage(p.t.Context(), p.backend.config(p.root), func(u doctor.Usage) { without = append(without, u) }))
	require.Equal(p.t, within, without)
	of := map[string]doctor.Usage{}
	for _, u := range without {
		p.t.Log(u)
		require.Equal(p.t, u.Mapped, u.Exclusive+u.Shared)
		of[u.Key] = u
	}
	for _, key := range []string{"one", "two", "active"} {
		require.Equal(p.t, p.device(key), of[key].Volume, key)
		require.NotZero(p.t, of[key].Shared, key)
	}
	require.NotZero(p.t, of["two"].Exclusive, "its own file")
}

// TestThinDoctorState damages the metadata of a pool that does not run, and
// finds a pool that is full.
func TestThinDoctorState(t *testing.T) {
	guest.Require(t)
	p := newThinPatient(t, "xfs")
	require.Empty(t, p.findings())
	f, err := os.OpenFile(poolMetadata(p.root), os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	damage := func(block int64, change func(b []byte), want doctor.Code) {
		t.Helper()
		was := make([]byte, 4096)
		_, err := f.ReadAt(was, block*4096)
		require.NoError(t, err)
		b := append([]byte(nil), was...)
		change(b)
		_, err = f.WriteAt(b, block*4096)
		require.NoError(t, err)
		require.Equal(t, []doctor.Code{want}, p.findings())
		_, err = f.WriteAt(was, block*4096)
		require.NoError(t, err)
	}
	seal := func(b []byte) {
		binary.LittleEndian.PutUint32(b, ^crc32.Checksum(b[4:], crc32.MakeTable(crc32.Castagnoli))^160774)
	}
	super := make([]byte, 4096)
	_, err = f.ReadAt(super, 0)
	require.NoError(t, err)
	damage(0, func(b []byte) { b[4] |= 1; seal(b) }, doctor.PoolState)
	damage(0, func(b []byte) { b[200]++ }, doctor.PoolUnreadable)
	damage(0, func(b []byte) { copy(b[72:80], b[64:72]); seal(b) }, doctor.PoolFull)
	for _, root := range []int{320, 328} {
		damage(int64(binary.LittleEndian.Uint64(super[root:])), func(b []byte) { b[1000]++ }, doctor.PoolUnreadable)
	}
	require.Empty(t, p.findings())

	_, err = f.ReadAt(super, 0)
	require.NoError(t, err)
	super[4] |= 1
	seal(super)
	_, err = f.WriteAt(super, 0)
	require.NoError(t, errors.Join(err, f.Sync()))
	require.Equal(t, []doctor.Code{doctor.PoolState}, p.findings())
	p.running(func(h *lamina.Host, _ *host) { // which sets the pool aside
		require.Equal(t, []doctor.Code{doctor.PoolState}, p.live(h))
		require.NoError(t, h.Usage(t.Context(), func(doctor.Usage) {}))
	})
	p.repair()
	require.Empty(t, p.findings())
	checkPool(t, p.root)
}

// TestThinDoctorDevices finds what is left in the kernel by a daemon that was
// killed, and what others have put in the way.
func TestThinDoctorDevices(t *testing.T) {
	guest.Require(t)
	p := newThinPatient(t, "ext4")
	dir := mustTempDir(t)
	d := startDaemonWith(t, dir, p.backend, p.backend.toml()+"  data_size = \"2GiB\"\n")
	d.stop()
	require.NoError(t, os.RemoveAll(d.root()))
	require.NoError(t, os.Rename(p.root, d.root()))
	p.root, p.dir = d.root(), dir
	d.restart()
	p.requireClean()
	d.client(lamina.DefaultName).requireFile("active", "one", "1") // now it has its device
	d.kill()
	require.Equal(t, []doctor.Code{doctor.PoolLeft}, p.findings())

	prefix := p.prefix()
	var uuid string
	p.withStore(metadata.Options{ReadOnly: true}, func(s *metadata.Store) error { uuid = s.UUID(); return nil })
	loops := len(loopsOf(p.root))
	for _, c := range []string{
		fmt.Sprintf("dmsetup suspend --noflush %s-%d", prefix, p.device("active")),
		fmt.Sprintf("dmsetup create %s-%d --uuid LAMINA-%s-%[2]d --table '0 2097152 thin /dev/mapper/%[1]s-pool %[2]d'", prefix, p.device("two"), uuid),
		fmt.Sprintf("dmsetup create %s-4711 --uuid LAMINA-%s-4711 --table '0 8192 zero'", prefix, uuid),
		fmt.Sprintf("dmsetup create %s-4712 --uuid other --table '0 8192 zero'", prefix),
		"losetup --find " + filepath.Join(p.root, "thin", "data"),
		"cd " + filepath.Join(p.root, "thin") + " && cp --sparse=always data old && mv data kept && mv old data && losetup --find data && rm data && mv kept data",
	} {
		_, err := command(background, []string{"DM_DISABLE_UDEV=1"}, "/bin/sh", "-ec", c)
		require.NoError(t, err)
	}
	require.Len(t, loopsOf(p.root), loops+2)
	require.ElementsMatch(t, []doctor.Code{
		doctor.PoolLeft, doctor.DeviceSuspended, doctor.DeviceSurplus, doctor.DeviceTable, doctor.DeviceForeign,
		doctor.LoopDouble, doctor.LoopDeleted,
	}, p.findings())
	for _, others := range []string{"-4711", "-4712"} { // these are left to the user
		_, err := dmsetup("remove", prefix+others)
		require.NoError(t, err)
	}
	p.repair()
	require.Empty(t, p.findings())
	require.Empty(t, loopsOf(p.root))
	checkPool(t, p.root)
}

// TestThinDoctorLive finds devices that are wrong beside a daemon.
func TestThinDoctorLive(t *testing.T) {
	guest.Require(t)
	p := newThinPatient(t, "ext4")
	prefix := p.prefix()
	p.running(func(h *lamina.Host, sn *host) {
		require.Empty(t, p.live(h))
		active := fmt.Sprintf("%s-%d", prefix, p.liveDevice(sn, "active"))
		_, err := dmsetup("suspend", "--noflush", active)
		require.NoError(t, err)
		require.Equal(t, []doctor.Code{doctor.DeviceSuspended}, p.live(h))
		_, err = dmsetup("resume", active)
		require.NoError(t, err)
		_, err = dmsetup("remove", active)
		require.NoError(t, err)
		require.Equal(t, []doctor.Code{doctor.DeviceMissing}, p.live(h))
		_, err = sn.Mounts(t.Context(), "active")
		require.NoError(t, err)
		require.Empty(t, p.live(h))

		device, err := os.Open("/dev/mapper/" + active)
		require.NoError(t, err)
		require.NoError(t, sn.Remove(t.Context(), "active"))
		var found []doctor.Finding
		require.NoError(t, h.Examine(t.Context(), func(f doctor.Finding) { found = append(found, f) }))
		require.Equal(t, []doctor.Code{doctor.TrashWaiting}, codes(found))
		require.Contains(t, found[0].Holders[0], fmt.Sprintf("(pid %d) has /dev/", os.Getpid()))
		require.NoError(t, device.Close())
		require.NoError(t, sn.Snapshotter.(snapshots.Cleaner).Cleanup(t.Context()))
		require.Empty(t, p.live(h))
	})
	require.Empty(t, p.findings())
}

// liveDevice returns the volume that a snapshot is mounted from.
func (p thinPatient) liveDevice(sn *host, key string) uint32 {
	p.t.Helper()
	mounts, err := sn.Mounts(p.t.Context(), key)
	require.NoError(p.t, err)
	var id uint32
	_, err = fmt.Sscan(mounts[0].Source[strings.LastIndex(mounts[0].Source, "-")+1:], &id)
	require.NoError(p.t, err)
	return id
}
