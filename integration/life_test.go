package integration

import (
	"archive/tar"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/integration/image"
)

// TestLife takes an image through all that an operator does with one: import,
// look at it, run containers, commit one, run what was committed, remove all.
// Nothing may be left.
func TestLife(t *testing.T) {
	forEachContainerd(t, func(t *testing.T, c containerd) {
		t.Helper()
		n := startNode(t, c, union)
		n.importImage(n.snapshotter, "debian.tar")
		n.live(20)
	})
}

// TestThinLife does the same with volumes, and compares the image's tree with
// that of containerd's overlayfs, which has a test of its own for the union; with
// LAMINA_TORTURE=1 on xfs too, where other tests run containers.
func TestThinLife(t *testing.T) {
	var want map[string]file
	forThin(t, "", ordinarily(thinExt4), func(t *testing.T, b backend) {
		t.Helper()
		n := startNode(t, containerd2, b)
		n.importImage(n.snapshotter, "debian.tar")
		if want == nil { // unpacked once, for this takes a while in a guest
			want = linksInTree(n.readOverlayTree())
		}
		got := n.readImageTree(n.snapshotter)
		n.checkTree(got, want)
		n.checkTree(got, linksInTree(got)) // no link of a layer below counts
		n.live(5)
	})
}

// live is the life of the image that the node has unpacked, with that many
// containers at once.
func (n *node) live(containers int) {
	n.t.Helper()
	top := n.checkLayers()
	n.checkDiff(top)

	ids := n.runContainers(containers)
	for _, id := range ids {
		n.checkWritten(id)
	}
	n.commitAndRun(ids[len(ids)/2])
	n.removeAll(ids)
	n.checkNothingLeft()
}

// checkLayers checks what ctr says of the layers of the image, and returns the
// key of the topmost.
func (n *node) checkLayers() string {
	n.t.Helper()
	parents := parentsIn(n.ctr("snapshots", "ls"))
	if len(parents) != debianLayers {
		n.t.Fatalf("snapshots ls: %d snapshots, want %d", len(parents), debianLayers)
	}
	top := topOf(parents)
	length := 0
	for key := top; key != ""; key = parents[key] {
		n.checkInfo(key, parents[key])
		length++
	}
	if length != debianLayers {
		n.t.Errorf("snapshots ls: a chain of %d, want %d", length, debianLayers)
	}
	n.checkSnapshotTree(top)
	n.checkUsage(len(parents))
	return top
}

// parentsIn returns the parents of the committed snapshots that snapshots ls
// printed, by their keys.
func parentsIn(list string) map[string]string {
	parents := map[string]string{}
	for _, row := range tableRows(list) {
		switch {
		case row[len(row)-1] != "Committed":
		case len(row) == 3:
			parents[row[0]] = row[1]
		default:
			parents[row[0]] = ""
		}
	}
	return parents
}

// topOf returns the key that is nobody's parent.
func topOf(parents map[string]string) string {
	for key := range parents {
		isParent := false
		for _, p := range parents {
			isParent = isParent || p == key
		}
		if !isParent {
			return key
		}
	}
	return ""
}

func (n *node) checkInfo(key, parent string) {
	n.t.Helper()
	var info struct {
		Kind, Name, Parent string
		Created, Updated   time.Time
	}
	if err := json.Unmarshal([]byte(n.ctr("snapshots", "info", key)), &info); err != nil {
		n.t.Fatalf("snapshots info %s: %v", key, err)
	}
	if info.Kind != "Committed" || info.Name != key || info.Parent != parent {
		n.t.Errorf("snapshots info %s: %+v, want it committed on %q", key, info, parent)
	}
	if age := time.Since(info.Created); age < 0 || age > time.Hour {
		n.t.Errorf("snapshots info %s: created %s ago", key, age)
	}
}

// checkSnapshotTree checks that snapshots tree prints the chain, each layer deeper than
// the one before, down to top.
func (n *node) checkSnapshotTree(top string) {
	n.t.Helper()
	lines := strings.Split(strings.TrimRight(n.ctr("snapshots", "tree"), "\n"), "\n")
	if len(lines) != debianLayers || !strings.HasSuffix(lines[len(lines)-1], top) {
		n.t.Errorf("snapshots tree: want %d lines, the last with %s:\n%s", debianLayers, top, strings.Join(lines, "\n"))
	}
	for i := 1; i < len(lines); i++ {
		if strings.Index(lines[i], "sha256:") <= strings.Index(lines[i-1], "sha256:") {
			n.t.Errorf("snapshots tree: line %d is not below the one before:\n%s", i+1, strings.Join(lines, "\n"))
		}
	}
}

// checkUsage checks that the layers together are as large as what is in them. A
// volume of a layer that only changes what its parent has adds nothing to it.
func (n *node) checkUsage(count int) {
	n.t.Helper()
	var sizes []int64
	var total, inodes, least int64
	if n.daemon == nil || n.daemon.backend.name == lamina.BackendUnion {
		least = 1
	}
	for _, row := range n.rows("snapshots", "usage", "-b") {
		size, err1 := strconv.ParseInt(row[1], 10, 64)
		files, err2 := strconv.ParseInt(row[2], 10, 64)
		if err := errors.Join(err1, err2); err != nil || size < least || files < least {
			n.t.Errorf("snapshots usage: %v: %v", row, err)
		}
		sizes = append(sizes, size)
		total += size
		inodes += files
	}
	if len(sizes) != count || slices.Max(sizes) < image.BigSize || total > image.BigSize+(1<<30) || inodes < 1000 {
		n.t.Errorf("snapshots usage: %d rows, the largest %d bytes, together %d bytes and %d files",
			len(sizes), slices.Max(sizes), total, inodes)
	}
}

// checkDiff checks that the difference of the topmost layer from its parent is
// that layer: one program.
func (n *node) checkDiff(top string) {
	n.t.Helper()
	z, err := gzip.NewReader(strings.NewReader(n.ctr("snapshots", "diff", top)))
	if err != nil {
		n.t.Fatalf("snapshots diff: %v", err)
	}
	var names []string
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			n.t.Fatalf("snapshots diff: %v", err)
		}
		if h.Typeflag == tar.TypeReg {
			names = append(names, h.Name)
		}
	}
	if !slices.Equal(names, []string{"usr/local/bin/hello"}) {
		n.t.Errorf("snapshots diff: has the files %q, want only usr/local/bin/hello", names)
	}
}

// script is what each container runs: it reads, adds, changes and deletes in
// every way that a union has to keep apart, and checks that it is alone.
const script = `set -e
id=$1
test ! -e /data
mkdir /data
echo "$id" >/data/id
echo "written by $id" >>/lamina/grows
rm /lamina/mode
rm -r /lamina/names
mkdir /lamina/names
mv /lamina/owner /lamina/moved
ln /lamina/links/new /lamina/links/by-container
chmod 700 /lamina/special
head -c 1048576 /lamina/big >/data/part
test "$(tail -n 1 /lamina/grows)" = "written by $id"
test "$(ls /lamina/names)" = ""
echo "done $id"
`

// runContainers runs count containers at once to their end, and returns their
// ids.
func (n *node) runContainers(count int) []string {
	n.t.Helper()
	ids := make([]string, count)
	errs := make([]error, count)
	var wg sync.WaitGroup
	for i := range ids {
		ids[i] = fmt.Sprintf("c%02d", i)
		wg.Go(func() {
			out, err := n.tryCtr("run", image.DebianName, ids[i], "/bin/sh", "-c", script, "script", ids[i])
			if err == nil && strings.TrimSpace(out) != "done "+ids[i] {
				err = fmt.Errorf("container %s printed %q", ids[i], out)
			}
			errs[i] = err
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		n.t.Fatal(err)
	}
	return ids
}

// checkWritten mounts the snapshot of a container that has ended and looks for
// what it wrote.
func (n *node) checkWritten(id string) {
	n.t.Helper()
	n.withMount(id, n.ctr("snapshots", "mounts", n.mountpoint(id), id), func(dir string) {
		got, err := os.ReadFile(filepath.Join(dir, "data/id"))
		if err != nil || strings.TrimSpace(string(got)) != id {
			n.t.Errorf("container %s left /data/id with %q, %v", id, got, err)
		}
		if _, err := os.Stat(filepath.Join(dir, "lamina/mode")); !errors.Is(err, os.ErrNotExist) {
			n.t.Errorf("container %s deleted /lamina/mode, stat says %v", id, err)
		}
	})
}

func (n *node) mountpoint(id string) string { return filepath.Join(n.dir, "mnt-"+id) }

// withMount runs the mount command that ctr printed, calls f with the mount
// point of id, and unmounts.
func (n *node) withMount(id, mountCommand string, f func(dir string)) {
	n.t.Helper()
	dir := n.mountpoint(id)
	mustMkdir(n.t, dir)
	if _, err := command(background, nil, "/bin/sh", "-ec", mountCommand); err != nil {
		n.t.Fatal(err)
	}
	defer func() {
		if _, err := command(background, nil, "umount", dir); err != nil {
			n.t.Error(err)
		}
	}()
	f(dir)
}

// commitAndRun commits the snapshot of a container that has ended, and runs a
// container on the result. Both stay.
func (n *node) commitAndRun(id string) {
	n.t.Helper()
	n.ctr("snapshots", "commit", "committed", id)
	if _, err := n.tryCtr("snapshots", "info", id); err == nil {
		n.t.Errorf("snapshot %s is still there after its commit", id)
	}
	if _, err := n.tryCtr("snapshots", "delete", "no-such-snapshot"); err == nil {
		n.t.Error("deleting a snapshot that does not exist went well")
	}
	mount := n.ctr("snapshots", "prepare", "--target", n.mountpoint("again"), "again", "committed")
	n.withMount("again", mount, func(dir string) {
		out := n.ctr("run", "--rm", "--rootfs", dir, "again", "/bin/sh", "-c",
			`cat /data/id; tail -n 1 /lamina/grows; test ! -e /lamina/mode; echo more >/data/more`)
		if want := fmt.Sprintf("%s\nwritten by %s\n", id, id); out != want {
			n.t.Errorf("a container on the committed snapshot printed %q, want %q", out, want)
		}
	})
	if _, err := n.tryCtr("snapshots", "delete", "committed"); err == nil {
		n.t.Error("deleting a snapshot that has a child went well")
	}
}

// removeAll removes the containers and the image, and has containerd collect
// its garbage.
func (n *node) removeAll(ids []string) {
	n.t.Helper()
	n.ctr("snapshots", "delete", "again")
	n.ctr("snapshots", "delete", "committed")
	n.ctr(append([]string{"containers", "delete"}, ids...)...)
	n.ctr("images", "delete", "--sync", image.DebianName)
}

// checkNothingLeft checks that containerd and Lamina forget and delete
// everything, in the background but soon.
func (n *node) checkNothingLeft() {
	n.t.Helper()
	if rows := n.rows("snapshots", "ls"); len(rows) > 0 {
		n.t.Errorf("after the garbage collection containerd lists %v", rows)
	}
	if n.daemon == nil {
		return
	}
	err := poll(10*time.Second, func() error {
		if left := n.daemon.layers(); len(left) > 0 {
			return fmt.Errorf("layers %v are left in the backend's place", left)
		}
		return nil
	})
	if err != nil {
		n.t.Error(err)
	}
	mounts, err := mountsOf(n.dir)
	if err != nil {
		n.t.Fatal(err)
	}
	for _, m := range mounts {
		n.t.Errorf("%s is mounted on %s", m.FSType, m.Mountpoint)
	}
	n.daemon.stop()
	n.daemon.backend.check(n.t, n.daemon.root())
	if count := n.daemon.check(); count > 0 {
		n.t.Errorf("%d snapshots are left in the store", count)
	}
}

func mustMkdir(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
}
