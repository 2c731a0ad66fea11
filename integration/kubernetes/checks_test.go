package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A medium is what the pods of a handler have their files on.
type medium struct {
	snapshotter string
	handler     string
	root        string // what the kubelet is told that it lies on
	mounts      string // the type of the file system in a container
	used        func(t *testing.T) int
	users       []uint32      // where the ids of pods in user namespaces begin
	look        time.Duration // what a look at the use of one snapshot may take of the daemon's time; containerd looks every 10 s
}

const mib = 1 << 20

// checkPods takes pods of a node whose default snapshotter this is through their lives.
func checkPods(t *testing.T, n *node, m medium) {
	t.Helper()
	p := n.runPod("plain", m.handler, 0)
	before := m.used(t)
	n.pull(m.handler)
	pulled := m.used(t) - before
	require.Greater(t, pulled, mib, "what the layers take up")

	for _, step := range []struct {
		name string
		run  func()
	}{
		{"containers", func() { p.checkContainers(m) }},
		{"stats", func() { p.checkStats(m) }},
		{"hundred", func() { p.checkHundred(m) }},
		{"users", func() { n.checkUsers(m) }},
		{"restarts", func() { p.checkRestarts() }},
		{"removal", func() { n.checkRemoval(m, before) }},
	} {
		start := time.Now()
		step.run()
		t.Logf("%s: %.1f s", step.name, time.Since(start).Seconds())
	}
}

// checkContainers runs containers to their end, and looks into one that runs.
func (p *pod) checkContainers(m medium) {
	p.t.Helper()
	first := p.run("cat /lamina/grows; echo own >/file; cat /file")
	require.Equal(p.t, "first line\nsecond line\nown", first.output())
	c := p.idle()
	kind := c.rootMount()
	require.Equal(p.t, m.mounts, kind)
	require.Equal(p.t, "new", c.exec("test ! -e /file && echo new >/file && cat /file"), "it shares nothing with the first")
	first.remove()
	c.remove()
}

// checkStats compares what the kubelet is told with what is there.
func (p *pod) checkStats(m medium) {
	p.t.Helper()
	const written = 8
	c := p.idle()
	c.write("/data", written)
	snapshotter := p.client.SnapshotService(m.snapshotter)
	require.NoError(p.t, poll(func() error {
		usage, err := snapshotter.Usage(p.t.Context(), c.id)
		if err != nil {
			return err
		}
		all, err := p.allUsed(snapshotter)
		if err != nil {
			return err
		}
		if told := c.writableLayer(); told.bytes != usage.Size || told.root != m.root {
			return fmt.Errorf("the writable layer has %+v, but the kubelet is told %+v", usage, told)
		}
		if told := p.imageFilesystem(); told.bytes != all || told.root != m.root {
			return fmt.Errorf("all have %d bytes, but the kubelet is told %+v", all, told)
		}
		return nil
	}))
	require.InDelta(p.t, (written+1)*mib, c.writableLayer().bytes, mib, "what was written, and what a file system adds to it")

	stats, err := p.runtime.ListPodSandboxStats(p.t.Context(), nil)
	require.NoError(p.t, err)
	require.Len(p.t, stats, 1)
	require.Len(p.t, stats[0].Linux.Containers, 1)
	require.Equal(p.t, c.writableLayer().bytes, int64(stats[0].Linux.Containers[0].WritableLayer.UsedBytes.GetValue()))
	c.remove()
}

// A use is how full a file system is by the CRI API.
type use struct {
	root  string
	bytes int64
}

func useOf(f *runtimeapi.FilesystemUsage) use {
	return use{f.GetFsId().GetMountpoint(), int64(f.GetUsedBytes().GetValue())}
}

func (c *container) writableLayer() use {
	c.t.Helper()
	stats, err := c.runtime.ContainerStats(c.t.Context(), c.id)
	require.NoError(c.t, err)
	return useOf(stats.WritableLayer)
}

// imageFilesystem is the one that the kubelet acts upon: the first.
func (n *node) imageFilesystem() use {
	n.t.Helper()
	info, err := n.images.ImageFsInfo(n.t.Context())
	require.NoError(n.t, err)
	return useOf(info.ImageFilesystems[0])
}

// allUsed returns what all snapshots use.
func (n *node) allUsed(snapshotter snapshots.Snapshotter) (sum int64, err error) {
	return sum, snapshotter.Walk(n.t.Context(), func(_ context.Context, info snapshots.Info) error {
		usage, err := snapshotter.Usage(n.t.Context(), info.Name)
		sum += usage.Size
		return err
	})
}

// write writes that many MiB and has them reach the disk.
func (c *container) write(name string, size int) {
	c.t.Helper()
	c.exec(fmt.Sprintf("busybox dd if=/dev/urandom of=%s bs=1M count=%d && sync", name, size))
}

// checkHundred has a hundred containers, whose use containerd asks for all the time.
func (p *pod) checkHundred(m medium) {
	p.t.Helper()
	const count, looks = 100, 3
	var all []*container
	start := time.Now()
	for range count {
		all = append(all, p.create("true"))
	}
	p.t.Logf("to create %d containers took %.1f s", count, time.Since(start).Seconds())
	p.awaitLook(m)
	cpu, start := p.lamina.cpu(), time.Now()
	for range looks {
		p.awaitLook(m)
	}
	cpu = p.lamina.cpu() - cpu
	p.t.Logf("%d looks at %d snapshots in %.1f s took %v of the daemon's time", looks, count, time.Since(start).Seconds(), cpu)
	require.Less(p.t, cpu, looks*count*m.look)

	start = time.Now()
	stats, err := p.runtime.ListPodSandboxStats(p.t.Context(), nil)
	require.NoError(p.t, err)
	require.NotEmpty(p.t, stats)
	p.t.Logf("ListPodSandboxStats took %v", time.Since(start))
	for _, c := range all {
		c.remove()
	}
}

// awaitLook waits until containerd has looked at all snapshots' uses once more: it dates what it tells by the oldest.
func (p *pod) awaitLook(m medium) {
	p.t.Helper()
	now := time.Now().UnixNano()
	require.NoError(p.t, poll(func() error {
		info, err := p.images.ImageFsInfo(p.t.Context())
		if err == nil && info.ImageFilesystems[0].Timestamp < now {
			err = errors.New("containerd does not look at the uses of " + m.snapshotter)
		}
		return err
	}))
}

// checkUsers runs pods in user namespaces, which share the layers of the image with those in none.
func (n *node) checkUsers(m medium) {
	n.t.Helper()
	layers := n.layers(m)
	for _, ids := range m.users {
		p := n.runPod(fmt.Sprintf("users-%d", ids), m.handler, ids)
		c := p.idle()
		require.Equal(n.t, []string{"0", fmt.Sprint(ids), "65536"}, strings.Fields(c.exec("cat /proc/self/uid_map")))
		require.Equal(n.t, "0:0 42:4242 0:0", strings.ReplaceAll(
			c.exec("touch /written && busybox stat -c %u:%g / /lamina/owner /written"), "\n", " "))
		n.checkOwner(m, c, ids)
		c.remove()
		p.remove()
	}
	require.Equal(n.t, layers, n.layers(m), "layers")
}

// checkOwner looks at whom a file of a container belongs to on the disk: directories have the host's ids, volumes those of the image.
func (n *node) checkOwner(m medium, c *container, ids uint32) {
	n.t.Helper()
	if m.mounts != "overlay" {
		return
	}
	mounts, err := n.client.SnapshotService(m.snapshotter).Mounts(n.t.Context(), c.id)
	require.NoError(n.t, err)
	for _, option := range mounts[0].Options {
		if upper, found := strings.CutPrefix(option, "upperdir="); found {
			var st unix.Stat_t
			require.NoError(n.t, unix.Stat(filepath.Join(upper, "written"), &st))
			require.Equal(n.t, ids, st.Uid)
			return
		}
	}
	n.t.Fatalf("no upperdir in %v", mounts)
}

// layers returns the number of committed snapshots.
func (n *node) layers(m medium) (count int) {
	n.t.Helper()
	require.NoError(n.t, n.client.SnapshotService(m.snapshotter).Walk(n.t.Context(), func(context.Context, snapshots.Info) error {
		count++
		return nil
	}, "kind==committed"))
	return count
}

// checkRestarts ends the daemons while containers run.
func (p *pod) checkRestarts() {
	p.t.Helper()
	c := p.idle()
	c.exec("echo before >/file && sync")

	p.lamina.end(syscall.SIGKILL)
	require.Equal(p.t, "before", c.exec("cat /file && echo without >/other"), "without a daemon")
	_, err := p.tryCreate("true")
	require.Error(p.t, err, "nobody makes a snapshot")
	p.lamina.start()
	require.Equal(p.t, "with", p.runAgain("echo with"))
	require.Equal(p.t, "without", c.exec("cat /other"))

	p.containerd.end(syscall.SIGKILL)
	p.containerd.start()
	p.awaitRuntime()
	require.Equal(p.t, "before", c.exec("cat /file"), "after containerd was killed")

	p.lamina.end(syscall.SIGTERM)
	require.Equal(p.t, "before", c.exec("cat /file"), "while the daemon is stopped")
	p.lamina.start()
	require.Equal(p.t, "with", p.runAgain("echo with"))
	c.remove()
}

// runAgain runs a container once containerd has found the daemon that was started again.
func (p *pod) runAgain(script string) string {
	p.t.Helper()
	var c *container
	require.NoError(p.t, poll(func() (err error) {
		c, err = p.tryCreate(script)
		return err
	}))
	require.NoError(p.t, p.runtime.StartContainer(p.t.Context(), c.id))
	defer c.remove()
	return c.output()
}

// checkRemoval removes the image: the space is there as before it was pulled.
func (n *node) checkRemoval(m medium, before int) {
	n.t.Helper()
	containers, err := n.runtime.ListContainers(n.t.Context(), nil)
	require.NoError(n.t, err)
	for _, c := range containers {
		require.NoError(n.t, n.runtime.RemoveContainer(n.t.Context(), c.Id))
	}
	require.NoError(n.t, n.images.RemoveImage(n.t.Context(), &runtimeapi.ImageSpec{Image: n.small}))
	require.Equal(n.t, 1, n.layers(m), "the layer of the sandbox's image stays")
	require.NoError(n.t, poll(func() error {
		if used := m.used(n.t); used > before+mib/2 {
			return fmt.Errorf("%d bytes are used, and %d before the image was pulled", used, before)
		}
		return nil
	}))
}

// usedByFiles returns what the files of layers take up.
func usedByFiles(t *testing.T) (sum int) {
	t.Helper()
	require.NoError(t, filepath.WalkDir("/var/lib/lamina/union", func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // the daemon deletes meanwhile
			return nil
		}
		if err != nil || d.IsDir() {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err == nil {
			sum += int(st.Blocks) * 512
		}
		return nil
	}))
	return sum
}

// usedByPool returns what the pool has taken of the disk, with what file systems on volumes have still to write.
func usedByPool(t *testing.T) int {
	t.Helper()
	unix.Sync()
	var st unix.Stat_t
	require.NoError(t, unix.Stat("/var/lib/lamina/thin/data", &st))
	return int(st.Blocks) * 512
}
