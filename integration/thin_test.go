package integration

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/dmthin"
	"github.com/lamina-snapshotter/lamina/integration/guest"
	"github.com/lamina-snapshotter/lamina/metadata"
)

// A backend is what a test runs on.
type backend struct {
	name string // as the configuration calls it
	thin dmthin.Config
}

var (
	union    = backend{name: lamina.BackendUnion}
	thinExt4 = backend{name: lamina.BackendThin, thin: dmthin.Config{FS: "ext4"}}
	thinXFS  = backend{name: lamina.BackendThin, thin: dmthin.Config{FS: "xfs"}}
)

// forEachThin runs a test on volumes of each file system.
func forEachThin(t *testing.T, test func(*testing.T, backend)) {
	t.Helper()
	forThin(t, "", []backend{thinExt4, thinXFS}, test)
}

// ordinarily returns one file system, and with LAMINA_TORTURE=1 all.
func ordinarily(b backend) []backend {
	if torture() {
		return []backend{thinExt4, thinXFS}
	}
	return []backend{b}
}

func forThin(t *testing.T, name string, on []backend, test func(*testing.T, backend)) {
	t.Helper()
	guest.Require(t)
	for _, b := range on {
		t.Run(name+b.thin.FS, func(t *testing.T) { test(t, b) })
	}
}

// config returns a configuration with one snapshotter, on the backend.
func (b backend) config(root string) lamina.Config {
	c := lamina.DefaultConfig()
	c.Root = root
	c.Snapshotters = map[string]lamina.SnapshotterConfig{lamina.DefaultName: {Backend: b.name}}
	if b.name == lamina.BackendThin {
		c.Thin = b.thin
	}
	return c
}

// toml returns such a configuration as it stands in a file, without the root.
func (b backend) toml() string {
	text := fmt.Sprintf("\n[snapshotters.%s]\n  backend = %q\n", lamina.DefaultName, b.name)
	if b.thin.FS != "" {
		text += fmt.Sprintf("\n[thin]\n  fs = %q\n", b.thin.FS)
	}
	if b.thin.VolumeSize != 0 {
		text += fmt.Sprintf("  volume_size = %q\n", b.thin.VolumeSize)
	}
	return text
}

// check checks what a Lamina that has stopped left in its root: the doctor finds
// nothing, and of a pool checkPool.
func (b backend) check(t *testing.T, root string) {
	t.Helper()
	if b.name == lamina.BackendThin {
		checkPool(t, root)
		return
	}
	doctored(t, b, root)
}

// checkPool checks what a Lamina that has stopped left in its root: no device,
// metadata in which thin_check finds no fault, and a volume for each content that
// the store knows and no other. The doctor finds nothing either.
func checkPool(t *testing.T, root string) {
	t.Helper()
	doctored(t, thinExt4, root)
	for _, v := range volumesOf(root) {
		t.Errorf("the device %s is left", v.name)
	}
	for _, l := range loopsOf(root) {
		t.Errorf("the loop device %s is left", l)
	}
	if out, err := exec.Command("thin_check", poolMetadata(root)).CombinedOutput(); err != nil {
		t.Errorf("thin_check: %v\n%s", err, out)
	}
	records, trash := storeVolumes(t, root)
	volumes, err := thinLS(poolMetadata(root))
	require.NoError(t, err)
	for _, id := range volumes {
		if !slices.Contains(records, id) && !slices.Contains(trash, id) {
			t.Errorf("the store does not know volume %s of the pool", id)
		}
	}
	for _, id := range records {
		if !slices.Contains(volumes, id) {
			t.Errorf("the pool does not have volume %s, which the store knows", id)
		}
	}
}

func poolMetadata(root string) string { return filepath.Join(root, "thin", "metadata") }

// storeVolumes returns the volumes that a store which nobody has open knows, and
// checks the store.
func storeVolumes(t *testing.T, root string) (records, trash []string) {
	t.Helper()
	store, err := metadata.Open(filepath.Join(root, "lamina.db"), metadata.Options{ReadOnly: true})
	require.NoError(t, err)
	defer store.Close()
	for problem, err := range store.Check(context.Background()) {
		require.NoError(t, err)
		t.Errorf("the store: %v", problem)
	}
	contents, err := store.Contents(metadata.Volume)
	require.NoError(t, err)
	deleted, err := store.Trash(context.Background())
	require.NoError(t, err)
	for _, link := range contents {
		records = append(records, strconv.FormatUint(link.Content(), 10))
	}
	for _, link := range deleted {
		if link.Placement.Medium == metadata.Volume {
			trash = append(trash, strconv.FormatUint(link.Content(), 10))
		}
	}
	return records, trash
}

// thinLS returns the ids of the volumes in a pool's metadata, sorted by number.
func thinLS(metadata string, options ...string) ([]string, error) {
	out, err := command(background, nil, append(append([]string{"thin_ls", "--no-headers", "--format", "DEV"}, options...), metadata)...)
	return strings.Fields(out), err
}

// mustVolumes returns the volumes of the running pool in root.
func mustVolumes(t *testing.T, root string) []string {
	t.Helper()
	ids, err := volumesIn(root)
	require.NoError(t, err)
	return ids
}

// volumesIn is mustVolumes that may fail. The pool must not start meanwhile, for
// that takes a snapshot of the metadata too.
func volumesIn(root string) (ids []string, err error) {
	loops := loopsOf(root)
	pool := poolOn(loops)
	if pool == "" {
		return nil, fmt.Errorf("no pool runs in %s", root)
	}
	if _, err := dmsetup("message", pool, "0", "reserve_metadata_snap"); err != nil {
		return nil, err
	}
	for _, loop := range loops { // the other device holds the data
		if ids, err = thinLS("/dev/"+loop, "--metadata-snap"); err == nil {
			break
		}
	}
	_, releaseErr := dmsetup("message", pool, "0", "release_metadata_snap")
	return ids, errors.Join(err, releaseErr)
}

// poolOn returns the name of the pool that stands on one of these devices, or "".
func poolOn(loops []string) string {
	for _, d := range kernelDevices(ourDevices) {
		if !strings.HasSuffix(d.name, "-pool") {
			continue
		}
		if slices.ContainsFunc(devicesBelow(d.kernel), func(below string) bool { return slices.Contains(loops, below) }) {
			return ourDevices + d.name
		}
	}
	return ""
}
