package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/admin"
)

// tOperated serves what a root tells, and returns a config file of commands that ask it.
func tOperated(t *testing.T, f *fakeRoot, more ...admin.Endpoint) string {
	t.Helper()
	root, address := filepath.Join(t.TempDir(), "root"), tSocketPath(t)
	a, err := openAdmin(t.Context(), address, admin.Handler(root, f, f, more...))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, a.close(context.Background())) })
	return tFile(t, fmt.Sprintf("root = %q\n[admin]\naddress = %q\n", root, address))
}

// tFakeRoot is a root with the snapshots of the golden files.
func tFakeRoot() *fakeRoot {
	f := &fakeRoot{snapshots: tSnapshots(), status: tStatus()}
	for i, s := range f.snapshots {
		f.space = append(f.space, admin.Space{Name: s.Name, Key: s.Key, Own: uint64(i), Freed: uint64(100 * i)})
	}
	return f
}

func TestOperatorCommandLines(t *testing.T) {
	f := tFakeRoot()
	config := tOperated(t, f)
	gone := tFile(t, fmt.Sprintf("root = %q\naddress = %q\n", filepath.Join(t.TempDir(), "none"), tSocketPath(t)))
	for _, tc := range []struct {
		line           string
		code           int
		stdout, stderr string
	}{
		{"status", exitOK, "v1.2.3, running", ""},
		{"status -o json", exitOK, `"version":"v1.2.3"`, ""},
		{"status -o yaml", exitUsage, "", `"yaml"`},
		{"ls --kind active -q", exitOK, "k8s.io/5/web\ndefault/6/job\n", ""},
		{"ls --sort key -q --name lamina --kind committed", exitOK, tBase + "\n" + tLayer + "\n", ""},
		{"ls --sort created -q", exitOK, "plain\n" + tBase, ""},
		{"ls --sort size -q", exitOK, tLayer + "\nplain\n", ""},
		{"ls --sort updated -q", exitOK, "[2J\"\nplain\n", ""},
		{"ls --label " + labelImage + "=docker.io/library/alpine:3.20 --key 9ad -q", exitOK, tLayer, ""},
		{"ls --label " + labelLayerDigest + " -q", exitOK, "plain\n", ""},
		{"ls --label =x", exitUsage, "", "no key"},
		{"ls --kind dead", exitUsage, "", `"dead"`},
		{"ls --sort colour", exitUsage, "", `"colour"`},
		{"ls now", exitUsage, "", `"now"`},
		{"tree web", exitOK, "└─web", ""},
		{"tree nothing", exitNotFound, "", `"nothing"`},
		{"tree web -o json", exitOK, `"depth":2`, ""},
		{"tree --svg -", exitOK, "</svg>", ""},
		{"tree --svg - -o json", exitUsage, "", "one of the two"},
		{"tree --svg /dev/stdout -o json", exitUsage, "", "one of the two"},
		{"inspect web", exitOK, "k8s.io/5/web", ""},
		{"inspect 9ad6 plain", exitOK, "thick", ""},
		{"inspect 4fc2 -o json", exitOK, `"key":"` + tBase + `"`, ""},
		{"inspect --name thick plain", exitOK, "at most 10 GiB", ""},
		{"inspect --name thick pla", exitOK, "at most 10 GiB", ""},
		{"inspect --name lamina plain", exitNotFound, "", "no such snapshot"},
		{"inspect sha256", exitUsage, "", "the key is that of several"},
		{"inspect", exitUsage, "", "needs a key"},
		{"du -n 1", exitOK, "500 B", ""},
		{"du --sort chain -o json", exitOK, `"freed":0}` + "\n", ""},
		{"du --sort name", exitUsage, "", `"name"`},
		{"du --top -1", exitUsage, "", "--top"},
		{"pool status", exitOK, "lamina-1", ""},
		{"pool grow 20GiB", exitOK, "1 GiB of 20 GiB", ""},
		{"pool grow much", exitUsage, "", `"much"`},
		{"pool grow auto", exitUsage, "", `"auto"`},
		{"pool trim", exitOK, "3 MiB given back", ""},
		{"cleanup", exitOK, "3 were to be deleted, 3 are left, 1 of them still in use\n", ""},
		{"cleanup -o json", exitOK, `{"before":3,"after":3}`, ""},
		{"top -n 1", exitOK, "union trash 3", ""},
		{"top -n 2 -d 100ms -o json", exitOK, `"version":"v1.2.3"`, ""},
		{"top -d 1ms", exitUsage, "", "--delay"},
		{"status --root /other", exitFailure, "", "the daemon has the root"},
		{"pool trim --root /other", exitFailure, "", "the daemon has the root"},
		{"status --config " + gone, exitFailure, "", "no daemon answers"},
		{"cleanup --config " + gone, exitNoDaemon, "", "needs a running daemon"},
		{"top --config " + gone, exitNoDaemon, "", "needs a running daemon"},
		{"cleanup --admin-address=", exitNoDaemon, "", "admin.address is empty"},
		{"completion bash", exitOK, "lamina", ""},
		{"completion zsh", exitOK, "lamina", ""},
		{"completion fish", exitOK, "lamina", ""},
		{"completion tcsh", exitUsage, "", `"tcsh"`},
	} {
		args := strings.Fields(tc.line)
		if args[0] != "completion" && !slices.Contains(args, "--config") {
			args = append(args, "--config", config)
		}
		code, stdout, stderr := tRun(t, args...)
		require.Equal(t, tc.code, code, "%s: %s%s", tc.line, stdout, stderr)
		require.NotContains(t, stdout+stderr, "\x1b", tc.line)
		require.Contains(t, stderr, tc.stderr, tc.line)
		require.Equal(t, code == exitOK, stderr == "", "%s: %s", tc.line, stderr)
		require.Contains(t, stdout, tc.stdout, tc.line)
	}
	require.Equal(t, "nothing was to be deleted", cleaned{}.text(admin.Status{Backends: []admin.Backend{{Waiting: 1}}}))
	require.Equal(t, []string{"grow 21474836480", "trim", "cleanup", "cleanup"}, f.told)
}

// What fails at the daemon keeps its sentence, without what a terminal would obey.
func TestOperatorErrors(t *testing.T) {
	f := &fakeRoot{err: fmt.Errorf("the pool \x1b[2Jis full: %w", errdefs.ErrResourceExhausted)}
	config := tOperated(t, f)
	for _, line := range []string{"ls", "status", "du", "pool trim", "pool grow 1GiB", "cleanup", "top", "tree"} {
		code, stdout, stderr := tRun(t, append(strings.Fields(line), "--config", config)...)
		require.Equal(t, exitFailure, code, line)
		require.Empty(t, stdout, line)
		require.Contains(t, stderr, `the pool \x1b[2Jis full`, line)
	}
}

// What is known without a backend that has failed is printed, and the failure.
func TestSpaceInPart(t *testing.T) {
	f := tFakeRoot()
	f.space, f.partial = f.space[:1], fmt.Errorf("%w: the thin backend: it hangs", admin.ErrPartial)
	config := tOperated(t, f)
	for _, format := range []string{"table", "json"} {
		code, stdout, stderr := tRun(t, "du", "-o", format, "--config", config)
		require.Equal(t, exitFailure, code, stderr)
		require.Contains(t, stderr, "this is not all: the thin backend: it hangs")
		require.Contains(t, stdout, f.snapshots[0].Key)
		require.NotContains(t, stdout, "the deletion of all", "nobody knows that")
		require.Equal(t, format == "json", strings.HasSuffix(stdout, "\n"+`{"class":"partial","error":"this is not all: the thin backend: it hangs"}`+"\n"), stdout)
	}
}

// Ctrl-C ends what is asked, and says so by the exit code of a shell.
func TestOperatorInterrupted(t *testing.T) {
	asked := make(chan struct{})
	f := &hungRoot{asked: asked}
	root, address := filepath.Join(t.TempDir(), "root"), tSocketPath(t)
	a, err := openAdmin(t.Context(), address, admin.Handler(root, f, f))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, a.close(context.Background())) })
	for _, line := range []string{"du", "pool trim"} {
		ctx, interrupt := context.WithCancel(t.Context())
		code := make(chan int, 1)
		var stderr logBuffer
		go func() {
			args := append([]string{"lamina"}, strings.Fields(line)...)
			code <- run(ctx, append(args, "--config", tFile(t, ""), "--root", root, "--admin-address", address), io.Discard, &stderr)
		}()
		<-asked
		interrupt()
		require.Equal(t, exitInterrupted, <-code)
		require.Equal(t, []string{"lamina: interrupted"}, stderr.lines())
	}
}

// A hungRoot measures and trims until the one who asks has gone.
type hungRoot struct {
	fakeRoot

	asked chan struct{}
}

func (h *hungRoot) Space(ctx context.Context, _ func(done, total int), _ func(admin.Space) error) error {
	h.asked <- struct{}{}
	<-ctx.Done()
	return ctx.Err()
}

func (h *hungRoot) TrimPool(ctx context.Context) (uint64, error) {
	return 0, h.Space(ctx, nil, nil)
}

// Keys are completed from what the daemon has, but for those that a shell would not take as they are.
func TestCompleteKeys(t *testing.T) {
	f := tFakeRoot()
	f.snapshots = append(f.snapshots, admin.Snapshot{Name: "lamina", Key: "$(reboot)"}, admin.Snapshot{Name: "lamina", Key: "-o"})
	config := tOperated(t, f)
	code, stdout, stderr := tRun(t, "inspect", "--config", config, "--generate-shell-completion")
	require.Equal(t, exitOK, code, stderr)
	require.Equal(t, []string{"4fc242d58285", "9ad63333ebc9", "web", "k8s.io/5/web", "job", "default/6/job", "plain"}, strings.Fields(stdout))
	was := os.Args
	t.Cleanup(func() { os.Args = was })
	for _, args := range [][]string{{"--generate-shell-completion"}, {"pool", "--generate-shell-completion"}} {
		os.Args = append([]string{"lamina"}, args...) // where the library looks
		_, stdout, _ = tRun(t, args...)
		require.Contains(t, stdout, map[int]string{1: "inspect", 2: "trim"}[len(args)])
	}
}

func TestResolve(t *testing.T) {
	all := append(tSnapshots(), admin.Snapshot{Name: "thick", Key: "k8s.io/5/web2"}, admin.Snapshot{Name: "thick", Key: "default/9/plain"})
	for _, tc := range []struct{ name, text, key string }{
		{"", "plain", "plain"}, // which is also the name in another
		{"", "web2", "k8s.io/5/web2"},
		{"lamina", "web", "k8s.io/5/web"},
		{"", "9ad63333", tLayer},
		{"", "sha256:9ad63333", tLayer},
		{"", "k8s.io/3/", tLayer},
		{"", "default/7", tSnapshots()[4].Key},
	} {
		s, err := resolve(all, tc.name, tc.text)
		require.NoError(t, err, tc.text)
		require.Equal(t, tc.key, s.Key)
	}
	for text, want := range map[string]error{"": errNoSnapshot, "x": errNoSnapshot, "web": errAmbiguous, "k8s.io": errAmbiguous} {
		_, err := resolve(all, "", text)
		require.ErrorIs(t, err, want, text)
	}
	for key, want := range map[string][2]string{
		"k8s.io/12/sha256:ab": {"k8s.io", "sha256:ab"}, "default/1/a/b": {"default", "a/b"}, "plain": {"", "plain"},
		"a/b/c": {"", "a/b/c"}, "a/1/": {"", "a/1/"}, "/1/a": {"", "/1/a"},
	} {
		namespace, name := splitKey(key)
		require.Equal(t, want, [2]string{namespace, name}, key)
	}
}

func TestCounters(t *testing.T) {
	page := `# HELP lamina_operations_total Calls.
# TYPE lamina_operations_total counter
lamina_operations_total{class="OK",method="Prepare",snapshotter="lamina"} 12
lamina_operations_total{class="NotFound",method="Prepare",snapshotter="lamina"} 3
lamina_operations_total{class="OK",method="Stat",snapshotter="a\"}{"} 1e+06
lamina_operations_total{broken
lamina_operations_total{method="x"} NaNNaN
lamina_operations_total_more{method="x"} 5
`
	before := readCounters([]byte(page))
	require.Equal(t, map[counted]float64{{"lamina", "Prepare"}: 15, {`a\"}{`, "Stat"}: 1e6}, before)
	after := map[counted]float64{{"lamina", "Prepare"}: 25, {`a\"}{`, "Stat"}: 1e6, {"lamina", "Remove"}: 30}
	require.Equal(t, []callRate{{"lamina", "Remove", 15}, {"lamina", "Prepare", 5}}, rates(before, after, 2*time.Second))

	grew := growths(map[place]admin.Space{{"l", "a"}: {Own: 10}, {"l", "b"}: {Own: 10}, {"l", "heir"}: {Own: 1, Shared: 8}, {"l", "gone"}: {Own: 5}},
		map[place]admin.Space{{"l", "a"}: {Own: 30}, {"l", "b"}: {Own: 9}, {"l", "heir"}: {Own: 9}, {"l", "new"}: {Own: 100}}, 10*time.Second)
	require.Equal(t, []growthRate{{"l", "new", 100, 10}, {"l", "a", 30, 2}}, grew)
}

// A measurement that fails is told, and does not end the others.
func TestSpaceMeterGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeRoot{space: []admin.Space{{Name: "l", Key: "a", Own: 10}}}
		m := newSpaceMeter(f, time.Now)
		ctx, cancel := context.WithCancel(t.Context())
		wait := m.run(ctx)
		look := func() ([]growthRate, error) {
			time.Sleep(measurePeriod)
			synctest.Wait()
			return m.grown()
		}
		synctest.Wait()
		f.setSpace(nil, admin.Space{Name: "l", Key: "a", Own: 60})
		grew, err := look()
		require.NoError(t, err)
		require.Equal(t, []growthRate{{"l", "a", 60, 10}}, grew)
		busy := errors.New("busy")
		f.setSpace(busy)
		grew, err = look()
		require.ErrorIs(t, err, busy)
		require.Empty(t, grew, "what was is no more")
		f.setSpace(nil, admin.Space{Name: "l", Key: "a", Own: 160})
		grew, err = look()
		require.NoError(t, err)
		require.Equal(t, []growthRate{{"l", "a", 160, 10}}, grew)
		cancel()
		wait()
	})
}

// Rates come from the metrics, if the daemon has them.
func TestTopRates(t *testing.T) {
	calls := 0
	config := tOperated(t, tFakeRoot(), admin.Endpoint{
		Method: http.MethodGet, Path: metricsPath, Limit: time.Minute,
		Serve: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			calls += 100
			_, _ = fmt.Fprintf(w, "lamina_operations_total{method=\"Stat\",snapshotter=\"lamina\"} %d\n", calls)
		}),
	})
	code, stdout, stderr := tRun(t, "top", "-n", "2", "-d", "100ms", "-o", "json", "--config", config)
	require.Equal(t, exitOK, code, stderr)
	lines := strings.Split(strings.TrimSpace(stdout), "\n")
	require.Len(t, lines, 2)
	var first, second sample
	require.NoError(t, json.Unmarshal([]byte(lines[0]), &first))
	require.NoError(t, json.Unmarshal([]byte(lines[1]), &second))
	require.Empty(t, first.Calls)
	require.Len(t, second.Calls, 1)
	require.Equal(t, "Stat", second.Calls[0].Method)
	require.InEpsilon(t, 100/second.Time.Sub(first.Time).Seconds(), second.Calls[0].PerSecond, 0.01)
}
