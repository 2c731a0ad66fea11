package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/integration/image"
)

// TestRootlessContainers follows docs/rootless.md as an unprivileged user: its
// configuration, the command of its unit, a containerd of the user's with the
// output of lamina config containerd, and containers.
func TestRootlessContainers(t *testing.T) {
	if !isRootless() {
		enterRootless(t, "TestRootlessContainers")
		return
	}
	// rootlesskit copies /run, of which containerd takes a part, into a tmpfs.
	mustTmpfs(t, "/run")
	guide := rootlessGuide(t)
	home := mustTempDir(t)
	expand := strings.NewReplacer("/home/alice", home, "/run/user/1000", filepath.Join(home, "run"), "%E", filepath.Join(home, "config"))
	config := filepath.Join(home, "config/lamina/config.toml")
	mustMkdir(t, filepath.Dir(config))
	n := &node{t: t, dir: mustTempDir(t), snapshotter: "lamina"}
	if err := os.WriteFile(config, []byte(expand.Replace(guide.block(t, "toml"))+n.contentStore()), 0o600); err != nil {
		t.Fatal(err)
	}
	argv := guide.execStart(t, expand)
	lamina := mustBuild(t, buildLamina)
	daemon := startProcess(t, home, "lamina", nil, append([]string{lamina}, argv...)...)

	imports := filepath.Join(n.dir, "lamina.toml")
	out, err := command(background, nil, lamina, "config", "containerd", "--config", config)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out, "'remap-ids'") || strings.Contains(out, "'rebase'") {
		t.Errorf("containerd is told that there is what a user namespace has not:\n%s", out)
	}
	n.write(imports, out)
	n.start(containerd2, mustHave(t, containerd2.dir, "containerd"), imports)
	n.runRootless(3)

	if out, err := command(background, nil, lamina, "doctor", "--config", config); err != nil || out != "nothing is wrong\n" {
		t.Errorf("doctor: %q, %v", out, err)
	}
	found, err := command(background, nil, lamina, "features", "--config", config, "-o", "json")
	for _, want := range []string{`{"driver":"overlay","feature":"mount","here":"yes"`, `{"driver":"thin","feature":"mount","here":"no"`} {
		if err != nil || !strings.Contains(found, want) {
			t.Errorf("features lacks %s: %v\n%s", want, err, found)
		}
	}
	requireEmptied(t, filepath.Join(home, ".local/share/lamina/union"))
	if log, err := os.ReadFile(daemon.log); err != nil || !strings.Contains(string(log), "userxattr") {
		t.Errorf("overlayfs is not that of a user namespace: %v\n%s", err, log)
	}
	daemon.stop()
}

// rootlessScript leaves a deletion, a replaced directory and a copied file in the
// container's layer.
const rootlessScript = `set -e
test ! -e /written
echo "$1" >/written
rm /lamina/mode
rm -r /lamina/names
mkdir /lamina/names
test "$(ls /lamina/names)" = ""
chmod 700 /lamina/special
test -w /lamina/grows
echo "$1" >>/lamina/grows
tail -n 1 /lamina/grows
`

// runRootless runs containers at once without a cgroup, which is not an unprivileged user's to make here, mounts
// what one has written, and removes all.
func (n *node) runRootless(count int) {
	n.t.Helper()
	n.importImage(n.snapshotter, "small.tar")
	var wg sync.WaitGroup
	for i := range count {
		wg.Go(func() {
			id := fmt.Sprintf("r%d", i)
			out, err := n.tryCtr("run", "--cgroup", "", "--cpu-shares", "0", image.SmallName, id,
				"sh", "-c", rootlessScript, "script", id)
			if err != nil || strings.TrimSpace(out) != id {
				n.t.Errorf("container %s: %q, %v", id, out, err)
			}
		})
	}
	wg.Wait()
	n.withMount("r0", n.ctr("snapshots", "mounts", n.mountpoint("r0"), "r0"), func(dir string) {
		if got, err := os.ReadFile(filepath.Join(dir, "written")); err != nil || string(got) != "r0\n" {
			n.t.Errorf("the container left %q, %v", got, err)
		}
		if names, err := os.ReadDir(filepath.Join(dir, "lamina/names")); err != nil || len(names) > 0 {
			n.t.Errorf("a directory that the container replaced has %v, %v", names, err)
		}
	})
	layer := entriesIn(n.t, []byte(n.ctr("snapshots", "diff", "--media-type", ocispec.MediaTypeImageLayer, "r0")))
	for _, name := range []string{"written", "lamina/.wh.mode", "lamina/names/", "lamina/names/" + opaque, "lamina/grows"} {
		require.Contains(n.t, layer, name)
	}
	require.NotContains(n.t, logOf(n.t, n), walked, "containerd has compared")
	for i := range count {
		n.ctr("containers", "delete", fmt.Sprintf("r%d", i))
	}
	n.ctr("images", "delete", "--sync", image.SmallName)
}

// requireEmptied waits until no content is left in a union root.
func requireEmptied(t *testing.T, union string) {
	t.Helper()
	err := poll(10*time.Second, func() error {
		left, err := filepath.Glob(filepath.Join(union, "[0-9]*"))
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("%v are left", left)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(union, "owner")); err != nil {
		t.Error(err)
	}
}

func mustTmpfs(t *testing.T, at string) {
	t.Helper()
	if err := unix.Mount("tmpfs", at, "tmpfs", 0, ""); err != nil {
		t.Fatalf("mount a tmpfs on %s: %v", at, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", at, err)
		}
	})
}

// A guide is the page docs/rootless.md.
type guide string

func rootlessGuide(t *testing.T) guide {
	t.Helper()
	page, err := os.ReadFile(filepath.Join(repository(t), "docs/rootless.md"))
	if err != nil {
		t.Fatal(err)
	}
	return guide(page)
}

// block returns the first block of code in a language.
func (g guide) block(t *testing.T, language string) string {
	t.Helper()
	_, rest, found := strings.Cut(string(g), "\n```"+language+"\n")
	text, _, ended := strings.Cut(rest, "\n```")
	if !found || !ended {
		t.Fatalf("docs/rootless.md shows no %s", language)
	}
	return text + "\n"
}

// execStart returns the arguments that the unit gives to lamina.
func (g guide) execStart(t *testing.T, expand *strings.Replacer) []string {
	t.Helper()
	found := regexp.MustCompile(`(?m)^ExecStart=\S+ nsenter -- \S+/lamina (.*)$`).FindStringSubmatch(g.block(t, "ini"))
	if found == nil {
		t.Fatal("the unit of docs/rootless.md does not enter containerd's namespace to start lamina")
	}
	return strings.Fields(expand.Replace(found[1]))
}
