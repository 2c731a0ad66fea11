package integration

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lamina-snapshotter/lamina/integration/guest"
)

// ourDevices is how the names of Lamina's device-mapper devices begin.
const ourDevices = "lamina-"

// loopsOf returns the loop devices over files in dir.
func loopsOf(dir string) (found []string) {
	backing, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, name := range backing {
		file, err := os.ReadFile(name)
		if err == nil && strings.HasPrefix(string(file), dir+"/") {
			found = append(found, strings.Split(name, "/")[3])
		}
	}
	return found
}

// A volume is a device-mapper device of Lamina's: a pool or a volume in one.
type volume struct {
	name      string
	kernel    string // what the kernel calls it, dm-N
	suspended bool
}

// volumesOf returns Lamina's devices that stand on loop devices over files in
// dir, and those that stand on nothing, as a process leaves them that dies while
// it makes one. Those of another Lamina on this host are none of ours.
func volumesOf(dir string) (found []volume) {
	loops := loopsOf(dir)
	for _, v := range volumes() {
		below := devicesBelow(v.kernel)
		if len(below) == 0 || slices.ContainsFunc(below, func(d string) bool { return slices.Contains(loops, d) }) {
			found = append(found, v)
		}
	}
	return found
}

// volumes returns all of Lamina's devices on this host. dmsetup is asked, as a
// device that has no table yet is not in /sys.
func volumes() (found []volume) {
	if misc, err := os.ReadFile("/proc/misc"); err != nil || !bytes.Contains(misc, []byte(" device-mapper\n")) {
		return nil
	}
	list, _ := dmsetup("info", "--columns", "--noheadings", "--separator", " ", "--options", "name,minor,suspended")
	for line := range strings.Lines(list) {
		if f := strings.Fields(line); len(f) == 3 && strings.HasPrefix(f[0], ourDevices) {
			found = append(found, volume{name: f[0], kernel: "dm-" + f[1], suspended: f[2] == "Suspended"})
		}
	}
	return found
}

// devicesBelow returns the names of all devices that one stands on.
func devicesBelow(device string) (below []string) {
	slaves, _ := os.ReadDir(filepath.Join("/sys/block", device, "slaves"))
	for _, s := range slaves {
		below = append(append(below, s.Name()), devicesBelow(s.Name())...)
	}
	return below
}

// strayNodes returns the device nodes of devices of ours that there are not.
func strayNodes() (found []string) {
	nodes, _ := filepath.Glob("/dev/mapper/" + ourDevices + "*")
	all := volumes()
	for _, node := range nodes {
		if !slices.ContainsFunc(all, func(v volume) bool { return v.name == filepath.Base(node) }) {
			found = append(found, node)
		}
	}
	return found
}

// dmsetup makes and removes the nodes itself, whether or not udevd runs.
func dmsetup(args ...string) (string, error) {
	return command(background, []string{"DM_DISABLE_UDEV=1"}, append([]string{"dmsetup"}, args...)...)
}

func resumeVolumes(dir string) {
	for _, v := range volumesOf(dir) {
		if v.suspended {
			_, _ = dmsetup("resume", v.name) // what it cannot do, removing says
		}
	}
}

// removeDevices takes away the devices that stand on files in dir.
func removeDevices(dir string) error {
	var errs []error
	// Those that stand on others first, and a few times: what was unmounted is
	// busy for a moment.
	for range 50 {
		errs = nil
		for _, v := range volumesOf(dir) {
			_, err := dmsetup("remove", v.name)
			errs = append(errs, err)
		}
		if errors.Join(errs...) == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	for _, node := range strayNodes() {
		errs = append(errs, os.Remove(node))
	}
	for _, l := range loopsOf(dir) {
		errs = append(errs, exec.Command("losetup", "--detach", "/dev/"+l).Run())
	}
	return errors.Join(errs...)
}

// TestThinLeaks is for the check itself: it must see what stands on the session's
// files, and sweep it away.
func TestThinLeaks(t *testing.T) {
	guest.Require(t)
	dir := mustTempDir(t)
	for _, c := range []string{
		"truncate --size 1M " + dir + "/file",
		"losetup --find " + dir + "/file",
		"dmsetup create lamina-below --table \"0 2048 linear $(losetup --noheadings --output name --associated " + dir + "/file) 0\"",
		"dmsetup create lamina-above --table '0 1024 linear /dev/mapper/lamina-below 0'",
		"dmsetup create --notable lamina-half",
		"mkfs.ext4 -q /dev/mapper/lamina-above && mkdir " + dir + "/mnt && mount /dev/mapper/lamina-above " + dir + "/mnt",
		"dmsetup suspend lamina-above",
		"mknod /dev/mapper/lamina-stray b 7 7",
	} {
		if _, err := command(background, []string{"DM_DISABLE_UDEV=1"}, "/bin/sh", "-ec", c); err != nil {
			t.Fatal(err)
		}
	}
	left, err := findLeaks(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"mount of ext4 on " + dir + "/mnt", "device lamina-above", "device lamina-below", "device lamina-half",
		"device node /dev/mapper/lamina-stray", "loop device loop",
	} {
		if !strings.Contains(left.String(), want) {
			t.Errorf("no %q in:\n%s", want, left)
		}
	}
	if err := sweep(dir); err != nil {
		t.Error(err)
	}
	if left, err := findLeaks(dir); err != nil || len(left) > 0 {
		t.Errorf("%v, left after sweeping:\n%s", err, left)
	}
}
