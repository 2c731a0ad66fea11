package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
)

// programs is the directory of the daemon's program, once it is built. Read-only after TestMain.
var programs string

// The program starts itself as a peer that stands behind a socket.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == serveCommand {
		main()
	}
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		panic(err)
	}
	programs = dir
	code := m.Run()
	if err := os.RemoveAll(dir); err != nil {
		panic(err)
	}
	os.Exit(code)
}

var buildLamina = sync.OnceValues(func() (string, error) {
	program := filepath.Join(programs, "lamina")
	out, err := exec.Command("go", "build", "-buildvcs=false", "-ldflags", "-s -w", "-o", program, "../../cmd/lamina").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return program, err
})

func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("LAMINA_TEST_ROOT") == "1" {
		t.Fatal("needs root, and LAMINA_TEST_ROOT=1 says that it must run")
	}
	t.Skip("needs root: it mounts and starts snapshotters")
}

// mustBuild returns the path of the daemon's program.
func mustBuild(t *testing.T) string {
	t.Helper()
	program, err := buildLamina()
	require.NoError(t, err)
	return program
}

// found is the JSON that is tested.
type found struct {
	Disk       disk    `json:"disk"`
	Operations results `json:"operations"`
	Quotas     struct {
		Disk       disk    `json:"disk"`
		Operations results `json:"operations"`
	} `json:"quotas"`
	Restart restarts `json:"restart"`
	Images  results  `json:"images"`
	Targets []target `json:"targets"`
}

// TestShort takes the union backend through all parts, with little of everything.
func TestShort(t *testing.T) {
	requireRoot(t)
	dir := shortDir(t)
	var stdout, stderr bytes.Buffer
	args := []string{
		"-short", "-o", "json", "-dir", dir, "-lamina", mustBuild(t), "-tools", "../../bin/tools", "-busybox", "../../.cache/busybox",
		"operations", "quotas", "restart", "images",
	}
	require.Zero(t, run(t.Context(), args, &stdout, &stderr), "%s", &stderr)
	var f found
	require.NoError(t, json.Unmarshal(stdout.Bytes(), &f))
	require.NotEmpty(t, f.Disk.FileSystem)
	require.True(t, f.Disk.Journal, "an ext4 without a journal is not measured on, unless -fs here says so")

	size := sizeOf(union).short()
	for _, l := range lives(size) {
		for _, step := range l.steps {
			if step.name == "" {
				continue
			}
			checkResult(t, f.Operations, step.name, inProcessOf(overlayfs), proxiedOf(overlayfs))
			if !l.single {
				checkResult(t, f.Operations, atOnceName(step.name, size.clients), inProcessOf(overlayfs), proxiedOf(overlayfs))
			}
		}
	}
	_, resting := during(size)
	for _, op := range []string{opWalk(size.walked), resting} {
		checkResult(t, f.Operations, op, inProcessOf(overlayfs), proxiedOf(overlayfs))
	}
	require.Equal(t, f.Quotas.Disk.ProjectQuotas, len(f.Quotas.Operations) > 0)
	for _, op := range []string{opUnpack, opUnpackAtOnce, opRun} {
		checkResult(t, f.Images, op, laminaSyncOff, overlayfs)
	}
	require.Equal(t, size.stored, f.Restart.Snapshots)
	require.Positive(t, f.Restart.Stopped.Median)
	require.Positive(t, f.Restart.Killed.Median)
	checkTargets(t, f)
	checkNothingLeft(t, dir)
}

// checkResult checks an operation that was measured of Lamina and of others.
func checkResult(t *testing.T, all results, op string, others ...string) {
	t.Helper()
	ours, ok := all.median(op, laminaName)
	require.True(t, ok, op)
	require.Positive(t, ours, op)
	for _, r := range all {
		if r.Operation != op {
			continue
		}
		require.Len(t, r.Ratios, len(others), op)
		for _, other := range others {
			theirs, ok := all.median(op, other)
			require.True(t, ok, "%s: %s", op, other)
			require.InEpsilon(t, float64(ours)/float64(theirs), r.Ratios[other], 1e-9, "%s: %s", op, other)
			require.LessOrEqual(t, r.Peers[other].Low, r.Peers[other].High)
		}
	}
}

// checkTargets checks that there is one for each of the union's, and that it says what was measured.
func checkTargets(t *testing.T, f found) {
	t.Helper()
	what := map[string]target{}
	for _, g := range f.Targets {
		require.Equal(t, g.NotMeasured == "", g.Measured > 0, g.What)
		require.Equal(t, g.NotMeasured == "" && g.Measured <= g.Limit, g.Met, g.What)
		what[g.What] = g
	}
	for _, op := range []string{opPrepare, opCommit, opRemove} {
		ours, _ := f.Operations.median(op, laminaName)
		theirs, _ := f.Operations.median(op, proxiedOf(overlayfs))
		g := what[op+", beside "+proxiedOf(overlayfs)]
		require.InEpsilon(t, float64(ours)/float64(theirs), g.Measured, 1e-9, op)
		require.InEpsilon(t, unionProxied, g.Limit, 1e-9)
	}
	require.GreaterOrEqual(t, len(what), 14)
}

// shortDir returns a directory with a path that is short enough for sockets and mount options.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "b") //nolint:usetesting // needs a short path
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.Remove(dir)) })
	return dir
}

// checkNothingLeft checks that nothing is left of what was in dir: file, mount, loop device or process.
func checkNothingLeft(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, entries)
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	require.NoError(t, err)
	require.Empty(t, mounts)
	loops, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	require.NoError(t, err)
	for _, loop := range loops {
		file, _ := os.ReadFile(loop) // detached meanwhile
		require.NotContains(t, string(file), dir)
	}
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	for _, p := range processes {
		line, _ := os.ReadFile(p) // ended meanwhile
		require.NotContains(t, string(line), dir+"/")
	}
}

// cancels ends a context when a text is written to it.
type cancels struct {
	text string
	end  context.CancelFunc
	seen bytes.Buffer
}

func (c *cancels) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte(c.text)) {
		c.end()
	}
	return c.seen.Write(b)
}

// TestInterrupted interrupts each part on its way, as Ctrl-C does.
func TestInterrupted(t *testing.T) {
	requireRoot(t)
	lamina := mustBuild(t)
	for part, text := range map[string]string{
		"operations": "operations: round 0", "restart": "restart: the store", partImages: "images: round 0",
		"daemon": "daemon: the store", "scale": "layers: round 0", "prepare": "prepare: warm",
	} {
		t.Run(part, func(t *testing.T) {
			dir := shortDir(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			stderr := &cancels{text: text, end: cancel}
			args := []string{
				"-short", "-rounds", "1000", "-dir", dir, "-lamina", lamina, "-tools", "../../bin/tools", "-busybox", "../../.cache/busybox", part,
			}
			require.Equal(t, exitFailed, run(ctx, args, io.Discard, stderr), "%s", &stderr.seen)
			require.Contains(t, stderr.seen.String(), context.Canceled.Error())
			checkNothingLeft(t, dir)
		})
	}
}

// TestRefused gives what cannot be done: it says so at once.
func TestRefused(t *testing.T) {
	for args, want := range map[string]struct {
		code int
		text string
	}{
		"-backend aufs":                 {exitUsage, `-backend is "aufs", not one of`},
		"-o yaml":                       {exitUsage, `-o is "yaml"`},
		"-fs here -timeout 1ns quotas":  {exitFailed, "not done after 1ns"},
		"-fs vfat":                      {exitUsage, `-fs is "vfat"`},
		"-rounds -1":                    {exitUsage, "-rounds is -1"},
		"-nonsense":                     {exitUsage, "not defined: -nonsense"},
		"operations nothing":            {exitUsage, `there is no part "nothing"; there are ["operations"`},
		"-lamina /nowhere":              {exitFailed, "no program to measure"},
		"-tools /nowhere images":        {exitFailed, "`integration/setup tools` makes what is missing"},
		"-busybox /nowhere images":      {exitFailed, "`integration/setup image` makes what is missing"},
		"-timeout 1ns restart":          {exitFailed, "not done after 1ns"},
		"-backend thin -tools /nowhere": {exitFailed, ""},
	} {
		if want.code == exitFailed {
			requireRoot(t)
		}
		if want.text == "" {
			if _, err := os.Stat("/dev/mapper/control"); err == nil {
				continue
			}
			want.text = "this kernel has no device mapper, run it in a guest: bin/guest -udev"
		}
		var stderr bytes.Buffer
		all := append([]string{"-lamina", "/bin/true", "-dir", t.TempDir(), "-tools", "../../bin/tools", "-busybox", "../../.cache/busybox"}, strings.Fields(args)...)
		require.Equal(t, want.code, run(t.Context(), all, io.Discard, &stderr), args)
		require.Contains(t, stderr.String(), want.text, args)
	}
}

// timings are milliseconds by the names of peers.
func timings(pairs ...any) map[string][]time.Duration {
	all := map[string][]time.Duration{}
	for i := 0; i < len(pairs); i += 2 {
		all[pairs[i].(string)] = []time.Duration{time.Duration(pairs[i+1].(int)) * time.Millisecond}
	}
	return all
}

// TestTargets computes those of times that are known.
func TestTargets(t *testing.T) {
	r := results{
		resultOf(opPrepare, timings(laminaName, 6, laminaUnion, 3, inProcessOf(devMapper), 200)),
		resultOf(opRemove, timings(laminaName, 2, laminaUnion, 2, inProcessOf(devMapper), 50)),
		resultOf(opFirst, timings(laminaName, 9, inProcessOf(devMapper), 900)),
	}
	got, missing := map[string]target{}, []string{}
	for _, g := range r.targets(settings{backend: thin, scale: sizeOf(thin)}) {
		if g.NotMeasured == "" {
			got[g.What] = g
		} else {
			require.False(t, g.Met, g.What)
			missing = append(missing, g.What)
		}
	}
	require.Contains(t, missing, opView+", beside "+inProcessOf(devMapper))
	require.Equal(t, map[string]target{
		"Prepare, beside devmapper, in process":                  {"Prepare, beside devmapper, in process", thinDevmapper, 0.03, times, true, ""},
		"Remove, beside devmapper, in process":                   {"Remove, beside devmapper, in process", thinDevmapper, 0.04, times, false, ""},
		"Prepare of a first layer, beside devmapper, in process": {"Prepare of a first layer, beside devmapper, in process", thinDevmapper, 0.01, times, true, ""},
		"Prepare of a first layer, beside that of a child":       {"Prepare of a first layer, beside that of a child", thinFirst, 1.5, times, false, ""},
		"Prepare and Remove, beside those of lamina, union":      {"Prepare and Remove, beside those of lamina, union", thinUnion, 1.6, times, true, ""},
	}, got)
}
