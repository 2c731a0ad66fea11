package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/admin"
)

// tOutput runs a command line that must go well, and returns what it prints.
func tOutput(t *testing.T, args ...string) string {
	t.Helper()
	code, stdout, stderr := tRun(t, args...)
	require.Equal(t, exitOK, code, "%v: %s%s", args, stdout, stderr)
	return stdout
}

// tHTTP asks at a socket as curl does, and returns the answer.
func tHTTP(t *testing.T, address, method, path string) (int, string) {
	t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", address)
	}}
	defer transport.CloseIdleConnections()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://lamina"+path, http.NoBody)
	require.NoError(t, err)
	reply, err := transport.RoundTrip(r)
	require.NoError(t, err)
	defer reply.Body.Close()
	body, err := io.ReadAll(reply.Body)
	require.NoError(t, err)
	return reply.StatusCode, string(body)
}

const mib = 1 << 20

// tFill makes a layer of 1 MiB with two containers on it, of which one has written 2 MiB.
func tFill(t *testing.T, sn snapshots.Snapshotter) {
	t.Helper()
	write := func(mounts []mount.Mount, size int) {
		require.Len(t, mounts, 1)
		dir := mounts[0].Source // of a bind mount; otherwise it is the upper directory
		for _, option := range mounts[0].Options {
			if upper, ok := strings.CutPrefix(option, "upperdir="); ok {
				dir = upper
			}
		}
		require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), bytes.Repeat([]byte("x"), size), 0o644))
	}
	mounts, err := sn.Prepare(t.Context(), "k8s.io/1/extract", "")
	require.NoError(t, err)
	write(mounts, mib)
	require.NoError(t, sn.Commit(t.Context(), tBase, "k8s.io/1/extract", snapshots.WithLabels(map[string]string{labelImage: "alpine"})))
	mounts, err = sn.Prepare(t.Context(), "k8s.io/2/web", tBase)
	require.NoError(t, err)
	write(mounts, 2*mib)
	_, err = sn.View(t.Context(), "k8s.io/3/look", tBase)
	require.NoError(t, err)
}

// tReads runs every command that reads, and checks what they tell of tFill's snapshots, whoever answers.
func tReads(t *testing.T, config string, running bool) {
	t.Helper()
	var status admin.Status
	require.NoError(t, json.Unmarshal([]byte(tOutput(t, "status", "-o", "json", "--config", config)), &status))
	require.Equal(t, running, status.Running)
	require.Equal(t, buildVersion(), status.Version)
	require.Equal(t, 3, status.Store.Snapshots)
	require.Equal(t, []admin.Snapshotter{{Name: "lamina", Backend: "union", Committed: 1, Active: 1, Views: 1}}, status.Snapshotters)
	text := tOutput(t, "status", "--config", config)
	require.Equal(t, running, strings.Contains(text, fmt.Sprintf("as process %d", os.Getpid())), text)

	require.ElementsMatch(t, []string{tBase, "k8s.io/2/web", "k8s.io/3/look"}, strings.Fields(tOutput(t, "ls", "-q", "--config", config)))
	tree := tOutput(t, "tree", "web", "--config", config)
	require.Contains(t, tree, "└─sha256:4fc242d58285  committed")
	require.Contains(t, tree, "└─web")
	require.NotContains(t, tree, "look")
	tXML(t, []byte(tOutput(t, "tree", "--svg", "-", "--config", config)))

	var web admin.Inspection
	require.NoError(t, json.Unmarshal([]byte(tOutput(t, "inspect", "web", "-o", "json", "--config", config)), &web))
	require.Equal(t, "active", web.Kind)
	require.Equal(t, []string{tBase}, []string{web.Chain[0].Key})
	require.Equal(t, "alpine", web.Chain[0].Labels[labelImage])
	require.DirExists(t, web.Path)
	require.Equal(t, running, len(web.Mounts) == 1)

	freed := make(map[string]uint64)
	for line := range strings.Lines(tOutput(t, "du", "-o", "json", "--config", config)) {
		var s admin.Space
		require.NoError(t, json.Unmarshal([]byte(line), &s))
		freed[s.Key] = s.Freed
	}
	const slack = 64 << 10 // directories and inodes
	require.InDelta(t, 3*mib, freed[tBase], slack)
	require.InDelta(t, 2*mib, freed["k8s.io/2/web"], slack)
	require.Contains(t, tOutput(t, "du", "--config", config), "the deletion of all 3 snapshots would give back 3")

	code, _, stderr := tRun(t, "inspect", "nobody", "--config", config)
	require.Equal(t, exitNotFound, code, stderr)
}

// The commands tell the same of a daemon and of the files that it leaves.
func TestOperateDaemon(t *testing.T) {
	needRoot(t)
	root, address := filepath.Join(t.TempDir(), "root"), tSocketPath(t)
	socket := filepath.Join(filepath.Dir(address), "admin.sock")
	config := tFile(t, fmt.Sprintf("root = %q\naddress = %q\n", root, address))
	d := startDaemon(t, "--config", config)
	sn := tProxy(t, d, address, "lamina")
	tFill(t, sn)
	tMode(t, socket, fs.ModeSocket|0o600)
	tReads(t, config, true)
	tAsksByHTTP(t, socket)

	require.NoError(t, sn.Remove(t.Context(), "k8s.io/3/look"))
	require.NoError(t, sn.Remove(t.Context(), "k8s.io/2/web"))
	require.Contains(t, tOutput(t, "cleanup", "--config", config), ", 0 are left")
	left, err := os.ReadDir(filepath.Join(root, "union"))
	require.NoError(t, err)
	require.Len(t, slicesOfDigits(left), 1, "what was removed is deleted now")
	code, _, stderr := tRun(t, "pool", "trim", "--config", config)
	require.Equal(t, exitFailure, code, stderr)
	require.Equal(t, "nothing is wrong\n", tOutput(t, "doctor", "--config", config), "it asks the daemon")
	_, err = sn.View(t.Context(), "k8s.io/3/look", tBase)
	require.NoError(t, err)
	mounts, err := sn.Prepare(t.Context(), "k8s.io/2/web", tBase)
	require.NoError(t, err)
	for _, option := range mounts[0].Options {
		if upper, ok := strings.CutPrefix(option, "upperdir="); ok {
			require.NoError(t, os.WriteFile(filepath.Join(upper, "file"), make([]byte, 2*mib), 0o644))
		}
	}
	require.Equal(t, exitOK, d.wait(t), d.stderr.lines())
	_, err = os.Lstat(socket)
	require.ErrorIs(t, err, fs.ErrNotExist)

	tReads(t, config, false)
	free := &unlocked{t: t, store: filepath.Join(root, "lamina.db")}
	require.Equal(t, exitOK, run(t.Context(), []string{"lamina", "tree", "--config", config}, free, io.Discard))
	require.Positive(t, free.written)
	code, _, stderr = tRun(t, "cleanup", "--config", config)
	require.Equal(t, exitNoDaemon, code, stderr)
	tWithoutAdmin(t, config, address)
}

// An unlocked is written to while nobody has the root.
type unlocked struct {
	t       *testing.T
	store   string
	written int
}

func (u *unlocked) Write(p []byte) (int, error) {
	f, err := os.Open(u.store)
	require.NoError(u.t, err)
	defer f.Close()
	require.NoError(u.t, unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB), "a daemon could not start while somebody reads this")
	u.written += len(p)
	return len(p), nil
}

// slicesOfDigits are the directories that are named by ids.
func slicesOfDigits(entries []os.DirEntry) (ids []string) {
	for _, e := range entries {
		if strings.Trim(e.Name(), "0123456789") == "" {
			ids = append(ids, e.Name())
		}
	}
	return ids
}

// tAsksByHTTP asks the daemon what docs/admin.md says.
func tAsksByHTTP(t *testing.T, socket string) {
	t.Helper()
	for _, tc := range []struct {
		method, path, says string
		status             int
	}{
		{http.MethodGet, "/", `"/v1/doctor/usage"`, http.StatusOK},
		{http.MethodGet, "/v1/status", `"running":true`, http.StatusOK},
		{http.MethodGet, "/v1/snapshots", `"key":"k8s.io/2/web"`, http.StatusOK},
		{http.MethodGet, "/v1/snapshots/lamina?key=k8s.io/2/web", `"type":"overlay"`, http.StatusOK},
		{http.MethodGet, "/v1/snapshots/lamina?key=none", `"class":"not-found"`, http.StatusNotFound},
		{http.MethodGet, "/v1/space?progress=1", `{"progress":{"done":2,"total":2}}`, http.StatusOK},
		{http.MethodGet, "/v1/space", `"freed":`, http.StatusOK},
		{http.MethodGet, "/v1/pool", `"class":"not-found"`, http.StatusNotFound},
		{http.MethodPost, "/v1/cleanup", "{}", http.StatusOK},
		{http.MethodPost, "/v1/pool/trim", `"class":`, http.StatusPreconditionFailed},
		{http.MethodPost, "/v1/pool/devices?device=relative", `"class":`, http.StatusPreconditionFailed},
		{http.MethodGet, "/v1/doctor", "", http.StatusOK},
		{http.MethodGet, "/v1/status?root=/other", "the daemon has the root", http.StatusPreconditionFailed},
	} {
		status, body := tHTTP(t, socket, tc.method, tc.path)
		require.Equal(t, tc.status, status, "%s: %s", tc.path, body)
		require.Contains(t, body, tc.says, tc.path)
	}
}

// tWithoutAdmin has a daemon that cannot be asked: who asks hears of it.
func tWithoutAdmin(t *testing.T, config, address string) {
	t.Helper()
	d := startDaemon(t, "--config", config, "--admin-address=")
	tProxy(t, d, address, "lamina")
	code, _, stderr := tRun(t, "status", "--config", config)
	require.Equal(t, exitInUse, code, stderr)
	require.Contains(t, stderr, "A daemon that starts or stops answers in a moment")
	require.Contains(t, stderr, "does it run with another admin.address, or none?")
	code, _, stderr = tRun(t, "status", "--config", config, "--admin-address=")
	require.Equal(t, exitInUse, code, stderr)
	require.Contains(t, stderr, "admin.address is empty, so it cannot be asked")
	require.Equal(t, exitOK, d.wait(t))
}
