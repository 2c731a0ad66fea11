package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/integration/guest"
)

// mustDisk returns a block device of that size in bytes over a file in dir.
func mustDisk(t *testing.T, dir, name string, size int64) string {
	t.Helper()
	file := filepath.Join(dir, name)
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, os.Truncate(file, size))
	return mustLoop(t, file)
}

// mustLoop returns a block device over a file.
func mustLoop(t *testing.T, file string) string {
	t.Helper()
	out, err := command(background, nil, "losetup", "--find", "--show", file)
	require.NoError(t, err)
	disk := strings.TrimSpace(out)
	t.Cleanup(func() {
		_, err := command(background, nil, "losetup", "--detach", disk)
		require.NoError(t, err)
	})
	return disk
}

// onDisks returns a configuration of a pool on block devices.
func onDisks(root string, disks ...string) lamina.Config {
	c := thinExt4.config(root)
	c.Thin.Pool, c.Thin.Devices = "device", disks
	return c
}

// withHost opens a Lamina, calls f with it and closes it.
func withHost(t *testing.T, c lamina.Config, f func(h *host)) {
	t.Helper()
	opened, err := lamina.Open(t.Context(), c)
	require.NoError(t, err)
	defer func() { require.NoError(t, opened.Close()) }()
	sn, err := opened.Snapshotter(lamina.DefaultName)
	require.NoError(t, err)
	f(&host{sn, t})
}

// TestThinOnDisks keeps a pool on two block devices, whatever their order, and
// refuses what is not the whole pool or not this store's.
func TestThinOnDisks(t *testing.T) {
	guest.Require(t)
	dir := mustTempDir(t)
	a, b := mustDisk(t, dir, "a", 512<<20), mustDisk(t, dir, "b", 1<<30)
	root := filepath.Join(dir, "root")
	withHost(t, onDisks(root, a, b), func(h *host) {
		h.layer("base", "", []byte("base"))
		h.prepare("active", "base", nil)
		require.Len(t, volumesOf(dir), 4, "the pool, the two that it stands on, and the active one")
	})
	require.Empty(t, volumesOf(dir))
	withHost(t, onDisks(root, b, a), func(h *host) { h.requireFile("active", "base", "base") })

	refused := func(c lamina.Config, says string) {
		t.Helper()
		_, err := lamina.Open(t.Context(), c)
		require.ErrorContains(t, err, says)
		require.Empty(t, volumesOf(dir))
	}
	refused(onDisks(root, a), "2")
	refused(onDisks(filepath.Join(dir, "other"), a, b), "belongs to the store")
	refused(onDisks(root, a, filepath.Join(dir, "none")), "none")
}

// TestThinPoolAdd takes another device into a pool, which is larger then and has
// what it had.
func TestThinPoolAdd(t *testing.T) {
	guest.Require(t)
	dir := mustTempDir(t)
	a, b := mustDisk(t, dir, "a", 512<<20), mustDisk(t, dir, "b", 1<<30)
	config := func(disks ...string) {
		t.Helper()
		require.NoError(t, os.WriteFile(filepath.Join(dir, "config.toml"), fmt.Appendf(nil,
			"root = %q\n[snapshotters.lamina]\nbackend = \"thin\"\n[thin]\npool = \"device\"\ndevices = [%s]\n",
			filepath.Join(dir, "root"), `"`+strings.Join(disks, `", "`)+`"`), 0o600))
	}
	run := func(args ...string) (string, error) {
		return command(background, nil, append([]string{mustBuild(t, buildLamina), "pool", "add", "--config", filepath.Join(dir, "config.toml")}, args...)...)
	}
	add := func(args ...string) error {
		_, err := run(args...)
		return err
	}
	root := filepath.Join(dir, "root")
	config(a)
	withHost(t, onDisks(root, a), func(h *host) {
		h.layer("base", "", []byte("base"))
		require.ErrorContains(t, add(b), "another process has the root")
	})
	require.ErrorContains(t, add(), "needs a device")
	require.ErrorContains(t, add(b, b), "has no command or argument")
	out, err := run(b, "-o", "json")
	require.NoError(t, err)
	var grown struct {
		Device        string
		On            []string
		Before, After uint64
	}
	require.NoError(t, json.Unmarshal([]byte(out), &grown), out)
	require.Equal(t, []string{a, b}, grown.On)
	require.InDelta(t, 471<<20, grown.Before, 1<<20, out)
	require.ErrorContains(t, add(b), "is missing", "the configuration does not name it")
	config(a, b)
	require.ErrorContains(t, add(b), "in the pool already")
	withHost(t, onDisks(root, a, b), func(h *host) {
		h.prepare("active", "base", nil)
		h.requireFile("active", "base", "base")
		require.EqualValues(t, poolSectors(t, dir)*512, grown.After, "which is as large as was said")
		require.Greater(t, poolSectors(t, dir), 1400<<20/512)
	})
}

// poolSectors returns the size of the pool that lies on disks in a directory.
func poolSectors(t *testing.T, dir string) (sectors int) {
	t.Helper()
	for _, v := range volumesOf(dir) {
		if strings.HasSuffix(v.name, "-pool") {
			table, err := dmsetup("table", v.name)
			require.NoError(t, err)
			sectors, err = strconv.Atoi(strings.Fields(table)[1])
			require.NoError(t, err)
		}
	}
	return sectors
}

// TestThinPoolAddServing takes another device into a pool that is full: the daemon
// goes on, and makes what it has refused.
func TestThinPoolAddServing(t *testing.T) {
	guest.Require(t)
	dir := mustTempDir(t)
	a, b := mustDisk(t, dir, "a", 512<<20), mustDisk(t, dir, "b", 1<<30)
	toml := func(disks ...string) string {
		return "[snapshotters.lamina]\nbackend = \"thin\"\n[thin]\npool = \"device\"\nvolume_size = \"1GiB\"\nblock_size = \"1MiB\"\nzeroing = \"off\"\n" +
			"devices = [\"" + strings.Join(disks, `", "`) + "\"]\n"
	}
	d := startDaemonWith(t, filepath.Join(dir, "lamina"), thinExt4, toml(a))
	h := d.client("lamina")
	h.layer("base", "", []byte("base"))
	mounted, unmount := mustMount(t, h.prepare("large", "base", nil))
	err := within10s(t, "filling the pool", func() error {
		_, err := fillFile(filepath.Join(mounted, "large"), 900)
		return err
	})
	require.Error(t, err)
	_, err = h.Prepare(t.Context(), "new", "base")
	require.ErrorContains(t, err, "lamina pool add")
	before := poolSectors(t, dir)

	add := func(device string) (string, error) {
		return command(background, nil, mustBuild(t, buildLamina), "pool", "add", "--config", d.config(), device)
	}
	_, err = add(filepath.Join(dir, "none"))
	require.ErrorContains(t, err, "none")
	out, err := add(b)
	require.NoError(t, err)
	require.Contains(t, out, "is in the pool")
	require.Greater(t, poolSectors(t, dir), before+900<<20/512)
	h.prepare("new", "base", nil)
	h.requireFile("new", "base", "base")
	_, err = add(b)
	require.ErrorContains(t, err, "in the pool already")
	unmount()
	h.remove("large") // its file system has noted what it could not write
	operatePool(t, d)
	d.stop()

	require.NoError(t, d.configure(toml(a, b)))
	operateStopped(t, d)
	d.restart()
	h = d.client("lamina")
	h.requireFile("new", "base", "base")
	d.stop()
}

// TestThinPoolCreate takes a device that is not blank only when it is forced to.
func TestThinPoolCreate(t *testing.T) {
	guest.Require(t)
	dir := mustTempDir(t)
	disk := mustDisk(t, dir, "disk", 1<<30)
	_, err := command(background, nil, "mkfs.ext4", "-q", disk)
	require.NoError(t, err)
	config := filepath.Join(dir, "config.toml")
	require.NoError(t, os.WriteFile(config, []byte("root = \""+dir+"/root\"\n[snapshotters.lamina]\nbackend = \"thin\"\n"+
		"[thin]\npool = \"device\"\ndevices = [\""+disk+"\"]\n"), 0o600))
	create := func(flags ...string) (string, error) {
		return command(background, nil, append([]string{mustBuild(t, buildLamina), "pool", "create", "--config", config}, flags...)...)
	}
	_, err = create()
	require.ErrorContains(t, err, "not blank")
	require.ErrorContains(t, err, "ext4")

	mnt := filepath.Join(dir, "mnt")
	_, err = command(background, nil, "/bin/sh", "-ec", "mkdir "+mnt+" && mount "+disk+" "+mnt)
	require.NoError(t, err)
	_, err = create("--force")
	require.Error(t, err, "it is mounted")
	_, err = command(background, nil, "umount", mnt)
	require.NoError(t, err)

	out, err := create("--force", "-o", "json")
	require.NoError(t, err)
	require.Regexp(t, `^{"on":\["`+disk+`"\],"after":[0-9]{9,10}}\n$`, out)
	withHost(t, onDisks(filepath.Join(dir, "root"), disk), func(h *host) { h.layer("base", "", []byte("base")) })
	out, err = create("--force")
	require.NoError(t, err)
	require.Contains(t, out, "the pool was there already", "which changes nothing")
	withHost(t, onDisks(filepath.Join(dir, "root"), disk), func(h *host) {
		h.prepare("active", "base", nil)
		h.requireFile("active", "base", "base")
	})
}
