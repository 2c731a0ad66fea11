package overlayaufs

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/internal/features"
)

// What a new root would be written for where there is aufs and no overlayfs, containerd cannot unpack side by side.
func TestProbeRebase(t *testing.T) {
	cfg := Config{Root: filepath.Join(t.TempDir(), "new"), Driver: auto}
	none := errors.New("none")
	for _, tc := range []struct {
		listed      string
		trial, want error
	}{
		{"nodev\toverlay\n\text4\n", none, nil},
		{"nodev\taufs\n\text4\n", none, none},
		{"nodev\taufs\n\text4\n", nil, nil}, // the module was not loaded yet
	} {
		if err := cfg.probeRebase([]byte(tc.listed), func() error { return tc.trial }); !errors.Is(err, tc.want) {
			t.Errorf("%q, %v: %v", tc.listed, tc.trial, err)
		}
	}
	cfg.Driver = driverAufs
	if err := ProbeRebase(t.Context(), cfg); err == nil {
		t.Error("claimed for aufs")
	}
	if _, err := os.Lstat(cfg.Root); err == nil {
		t.Error("the root was made")
	}
}

// tFeatures tries everything, and returns the answers by driver and name.
func tFeatures(t *testing.T, cfg Config) map[string]features.Feature {
	t.Helper()
	found := map[string]features.Feature{}
	for _, f := range features.Run(t.Context(), Probes(cfg)) {
		key := f.Driver + " " + f.Name
		if _, twice := found[key]; twice {
			t.Errorf("%s is there twice", key)
		}
		found[key] = f
	}
	return found
}

func TestFeatures(t *testing.T) {
	tRoot(t)
	top := t.TempDir()
	theirs := []string{trialPrefix + "old", ".probe-results"}
	for _, name := range theirs {
		tOldTrial(t, top, name)
	}
	found := tFeatures(t, Config{Root: filepath.Join(top, "to/be/made")})
	for _, key := range []string{
		"overlay mount", "overlay layers", "overlay parallel unpack", "overlay userxattr", "overlay index", "overlay metacopy", "overlay volatile",
	} {
		if f, there := found[key]; !there || f.Err != nil {
			t.Errorf("%s: %v, %v", key, there, f.Err)
		}
	}
	if got := tNames(t, top); !slices.Equal(got, theirs) {
		t.Errorf("the directory above the root to be made has %q, had %q", got, theirs)
	}
}

// tOldTrial makes a directory that is older than any trial.
func tOldTrial(t *testing.T, dir, name string) {
	t.Helper()
	path := filepath.Join(dir, name)
	tWrite(t, filepath.Join(path, "1/file"), "")
	past := time.Now().Add(-2 * trialAge)
	if err := os.Chtimes(path, past, past); err != nil {
		t.Fatal(err)
	}
}

// What killed trials left goes from a place of ours, and from nowhere else.
func TestOldTrials(t *testing.T) {
	root := filepath.Join(t.TempDir(), "union")
	b := tBackend(t, Config{Root: root})
	if err := b.stopSpares(); err != nil { // nobody else makes anything
		t.Fatal(err)
	}
	want := tNames(t, root)
	for _, name := range []string{".probe-results", trialPrefix + "old"} {
		tOldTrial(t, root, name)
	}
	tWrite(t, filepath.Join(root, trialPrefix+"young", "file"), "")
	want = append(want, ".probe-results", trialPrefix+"young")
	slices.Sort(want)
	if err := removeOldTrials(t.Context(), b.root); err != nil {
		t.Fatal(err)
	}
	if got := tNames(t, root); !slices.Equal(got, want) {
		t.Errorf("the place has %q, want %q", got, want)
	}
	if err := os.Remove(filepath.Join(root, ownerName)); err != nil {
		t.Fatal(err)
	}
	tOldTrial(t, root, trialPrefix+"old")
	if err := removeOldTrials(t.Context(), b.root); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, trialPrefix+"old")); err != nil {
		t.Errorf("without an owner: %v", err)
	}
}

// What is said of aufs is what a start with that driver would meet.
func TestFeaturesOfAufs(t *testing.T) {
	tRoot(t)
	root := filepath.Join(t.TempDir(), "union")
	f := tFeatures(t, Config{Root: root})["aufs mount"]
	b, err := Open(t.Context(), Config{Root: root, Driver: driverAufs})
	if err == nil {
		tClose(t, b)
	}
	if (f.Err == nil) != (err == nil) || errors.Is(f.Err, unix.ENODEV) != errors.Is(err, unix.ENODEV) {
		t.Errorf("the probe says %v, a start %v", f.Err, err)
	}
}

// What is said of overlayfs is not what the setting, or the layers there are, make of it.
func TestFeaturesOfOverlayBesideAufs(t *testing.T) {
	tRoot(t)
	root := t.TempDir()
	if err := ProbeIDMap(t.Context(), Config{Root: root}); err != nil {
		t.Fatal(err)
	}
	tWrite(t, filepath.Join(root, ownerName), `{"uuid":"a","start":1,"form":"aufs"}`)
	cfg := Config{Root: root, Driver: driverAufs}
	if err := ProbeIDMap(t.Context(), cfg); !errors.Is(err, errAufsMaps) {
		t.Errorf("the place itself: %v", err)
	}
	found := tFeatures(t, cfg)
	if err := found["overlay id maps"].Err; err != nil {
		t.Errorf("overlay: %v", err)
	}
	for _, name := range []string{"id maps", "parallel unpack"} {
		if f, there := found["aufs "+name]; !there || f.Err == nil || errors.Is(f.Err, features.ErrUntried) {
			t.Errorf("aufs %s: %v, %v", name, there, f.Err)
		}
	}
}

// The probes may run beside a backend, and its place stays as it is, also if they are killed.
func TestFeaturesBesideBackend(t *testing.T) {
	root := filepath.Join(t.TempDir(), "union")
	b := tBackend(t, Config{Root: root})
	tMake(t, b, 1, nil, "file", "1")
	if err := b.stopSpares(); err != nil { // nobody else makes anything
		t.Fatal(err)
	}
	before, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	if f := tFeatures(t, Config{Root: root})["overlay mount"]; f.Err != nil {
		t.Error(f.Err)
	}
	if after, err := os.ReadDir(root); err != nil || len(after) != len(before) {
		t.Errorf("the place has %v, had %v: %v", after, before, err)
	}
	tWrite(t, filepath.Join(root, trialPrefix+"killed", "file"), "")
	if s, err := Look(t.Context(), root); err != nil || len(s.Foreign) > 0 {
		t.Errorf("what a killed probe leaves: %+v, %v", s, err)
	}
	if _, _, err := b.Owner(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestFeaturesRefused(t *testing.T) {
	tRoot(t)
	file := filepath.Join(t.TempDir(), "file")
	tWrite(t, file, "")
	for key, f := range tFeatures(t, Config{Root: filepath.Join(file, "union")}) {
		if f.Err == nil || errors.Is(f.Err, features.ErrUntried) {
			t.Errorf("%s below a file: %v", key, f.Err)
		}
	}
	b := tBackend(t, Config{Root: filepath.Join(t.TempDir(), "union")})
	tMake(t, b, 1, nil)
	if _, err := b.Make(t.Context(), Content{ID: 2}, tChain(1), nil); err != nil {
		t.Fatal(err)
	}
	mounts, err := b.Mounts(t.Context(), tChain(2, 1), true, nil)
	if err != nil {
		t.Fatal(err)
	}
	found := tFeatures(t, Config{Root: tMount(t, mounts)})
	if f := found["overlay mount"]; f.Err == nil || !strings.Contains(f.Err.Error(), "choose a root on") {
		t.Errorf("on an overlay: %v", f.Err)
	}
	if err := tFeatures(t, Config{Root: t.TempDir(), UserXattr: on})["overlay parallel unpack"].Err; err == nil {
		t.Error("parallel unpack with userxattr is said to work")
	}
}

// An error that more privileges would help against is no answer.
func TestFeaturesWithoutPrivileges(t *testing.T) {
	for _, errno := range []unix.Errno{unix.EPERM, unix.EACCES} {
		err := answer(explainOverlay("/r", &os.PathError{Op: opMount, Path: "/r", Err: errno}))
		if !errors.Is(err, features.ErrUntried) || !errors.Is(err, errno) {
			t.Errorf("%v: %v", errno, err)
		}
	}
	if err := answer(unix.EINVAL); errors.Is(err, features.ErrUntried) || err == nil {
		t.Errorf("EINVAL: %v", err)
	}
}
