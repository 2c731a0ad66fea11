package main

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina"
)

func TestReadSettings(t *testing.T) {
	none, err := readSettings(filepath.Join(t.TempDir(), "none.toml"), false)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(none, defaultSettings()) {
		t.Errorf("no file gives %+v", none)
	}
	for _, tc := range []struct {
		name, text string
		want       func(*settings)
	}{
		{"empty", "", func(*settings) {}},
		{"root", `root = "/r"`, func(s *settings) { s.Root = "/r" }},
		{"address", `address = "/a"`, func(s *settings) { s.Address = "/a" }},
		{"containerd", "[containerd]\naddress = \"/c\"", func(s *settings) { s.Containerd.Address = "/c" }},
		{"log", "[log]\nformat = \"json\"", func(s *settings) { s.Log.Format = "json" }},
		{"union", "[union]\nsync = \"off\"", func(s *settings) { s.Union.Sync = "off" }},
		{"volatile", "[union]\nvolatile = true", func(s *settings) { s.Union.Volatile = "on" }},
		{"not volatile", "[union]\nvolatile = false", func(s *settings) { s.Union.Volatile = "off" }},
		{"volatile in words", "[union]\nvolatile = \"on\"", func(s *settings) { s.Union.Volatile = "on" }},
		{"thin", "[thin]\ndata_size = \"1TiB\"\nhost_share = 1\nfs = \"xfs\"", func(s *settings) {
			s.Thin.DataSize, s.Thin.HostShare, s.Thin.FS = 1<<40, 1, "xfs"
		}},
		{"other name", "[snapshotters.other]", func(s *settings) {
			s.Snapshotters = map[string]lamina.SnapshotterConfig{"other": {Backend: "union"}}
		}},
		{"two names", "[snapshotters.a]\nbackend = \"union\"\n[snapshotters.lamina]", func(s *settings) {
			s.Snapshotters["a"] = lamina.SnapshotterConfig{Backend: "union"}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := readSettings(tFile(t, tc.text), true)
			if err != nil {
				t.Fatal(err)
			}
			want := defaultSettings()
			tc.want(&want)
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

func TestReadSettingsErrors(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		want       []string // all to be found in the message; %f is the file
	}{
		{"syntax", "root = \"/r\"\nroot", []string{"%f:2"}},
		{"unknown keys", "rot = \"/x\"\n[union]\nsink = \"off\"\n[lgo]\nlevel = \"info\"", []string{
			"%f:1: rot: unknown key", "%f:3: union.sink: unknown key", "%f:4: lgo: unknown key",
		}},
		{"unknown in a snapshotter", "[snapshotters.a]\nbakend = \"union\"", []string{"%f:2: snapshotters.a.bakend: unknown key"}},
		{"number for a path", "\nroot = 3", []string{"%f:2: root: "}},
		{"string for a table", "union = \"x\"", []string{"%f:1: union: "}},
		{"array for a string", "[log]\nlevel = [\"info\"]", []string{"%f:2: log.level: "}},
		{"relative root", `root = "r"`, []string{`%f: root: "r"`}},
		{"empty root", `root = ""`, []string{`%f: root: ""`}},
		{"relative address", `address = "lamina.sock"`, []string{`%f: address: "lamina.sock"`}},
		{"url", `address = "unix:///run/l.sock"`, []string{`%f: address: "unix:///run/l.sock"`}},
		{"long address", `address = "/` + strings.Repeat("a", 107) + `"`, []string{"address:", "108 bytes", "107"}},
		{"containerd", "[containerd]\naddress = \"c.sock\"", []string{`%f: containerd.address: "c.sock"`}},
		{"level", "[log]\nlevel = \"loud\"", []string{`%f: log.level: "loud"`}},
		{"format", "[log]\nformat = \"xml\"", []string{`%f: log.format: "xml"`}},
		{"no snapshotter", "[snapshotters]", []string{"%f: snapshotters: at least one"}},
		{"backend", "[snapshotters.a]\nbackend = \"zfs\"", []string{`%f: snapshotters.a.backend: "zfs"`, "union"}},
		{"name", "[snapshotters.\"a b\"]", []string{`snapshotters."a b"`}},
		{"sync", "[union]\nsync = \"never\"", []string{"%f: union.sync"}},
		{"driver", "[union]\ndriver = \"zfs\"", []string{"%f: union.driver"}},
		{"metrics for others", "[metrics]\naddress = \"0.0.0.0:9100\"", []string{"%f: metrics.address:", "other hosts"}},
		{"collector without a scheme", "[tracing]\nendpoint = \"localhost:4317\"", []string{"%f: tracing.endpoint:", "http://127.0.0.1:4318"}},
		{"collector without a host", "[tracing]\nendpoint = \"http:///v1\"", []string{"tracing.endpoint:"}},
		{"several", "root = \"r\"\n[log]\nlevel = \"x\"", []string{"root:", "log.level:"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := tFile(t, tc.text)
			code, _, stderr := tRun(t, "config", "--config", path)
			if code != exitConfig {
				t.Errorf("exit code %d, want %d", code, exitConfig)
			}
			for _, want := range tc.want {
				if want = strings.ReplaceAll(want, "%f", path); !strings.Contains(stderr, want) {
					t.Errorf("%q is not in:\n%s", want, stderr)
				}
			}
		})
	}
}

func TestFlagsOverrideFile(t *testing.T) {
	path := tFile(t, "root = \"/r\"\naddress = \"/a\"\n[log]\nlevel = \"warn\"")
	_, stdout, stderr := tRun(t, "config", "--config", path, "--root", "/r2", "--address", "/a2", "--log-level", "debug")
	got, err := parseSettings("stdout", []byte(stdout))
	if err != nil {
		t.Fatal(err, stderr)
	}
	if got.Root != "/r2" || got.Address != "/a2" || got.Log.Level != "debug" {
		t.Errorf("got %+v", got)
	}
}

// Two things cannot listen on one address, however it is written; the sentence names both keys.
func TestSharedAddress(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Symlink(dir, filepath.Join(dir, "link")))
	for _, tc := range []struct {
		address, admin, pprof, metrics string
		keys                           []string // that collide
	}{
		{pprof: "127.0.0.1:9090", metrics: "127.0.0.1:9090", keys: []string{"pprof", "metrics.address"}},
		{pprof: "localhost:9090", metrics: "127.0.0.1:09090", keys: []string{"pprof", "metrics.address"}},
		{pprof: "[::1]:9090", metrics: "[0::1]:9090", keys: []string{"pprof", "metrics.address"}},
		{pprof: "127.0.0.1:9090", metrics: "[::ffff:127.0.0.1]:9090", keys: []string{"pprof", "metrics.address"}},
		{pprof: "127.0.0.1:9090", metrics: "127.0.0.2:9090"},
		{pprof: "127.0.0.1:9090", metrics: "[::1]:9090"},
		{pprof: "127.0.0.1:9090", metrics: "127.0.0.1:9091"},
		{pprof: "127.0.0.1:0", metrics: "127.0.0.1:0"},
		{pprof: "localhost:00", metrics: "127.0.0.1:0"},
		{pprof: "unix:" + dir + "/s", metrics: dir + "/./s", keys: []string{"pprof", "metrics.address"}},
		{address: dir + "/s", metrics: dir + "/link/s", keys: []string{"metrics.address", "address"}},
		{address: dir + "/s", pprof: "unix://" + dir + "/s", keys: []string{"pprof", "address"}},
		{address: dir + "/s", admin: dir + "/link/link/s", keys: []string{"admin.address", "address"}},
		{address: dir + "/" + adminName, keys: []string{"admin.address", "address"}},
		{address: defaultContainerd, keys: []string{"containerd.address", "address"}},
		{address: dir + "/a", admin: dir + "/b", pprof: dir + "/c", metrics: dir + "/d"},
		{admin: dir + "/none/../s", metrics: dir + "/s", keys: []string{"metrics.address", "admin.address"}},
	} {
		s := defaultSettings()
		s.Pprof, s.Metrics.Address = tc.pprof, tc.metrics
		if tc.address != "" {
			s.Address = tc.address
		}
		if tc.admin != "" {
			s.Admin.Address = tc.admin
		}
		err := s.check()
		if tc.keys == nil {
			require.NoError(t, err, "%+v", tc)
			continue
		}
		for _, key := range tc.keys {
			require.ErrorContains(t, err, key, "%+v", tc)
		}
		require.Equal(t, 1, strings.Count(err.Error(), "an address of its own"), err)
	}
	root := filepath.Join(dir, "root")
	config := tFile(t, fmt.Sprintf("root = %q\naddress = %q\n[metrics]\naddress = \"localhost:9090\"\n", root, dir+"/s"))
	for _, command := range []string{"serve", "config"} {
		args := []string{command, "--config", config}
		if command == "serve" {
			args = append(args, "--pprof", "127.0.0.1:9090")
		} else {
			require.NoError(t, os.WriteFile(config, fmt.Appendf(nil, "pprof = \"127.0.0.1:9090\"\n[metrics]\naddress = \"localhost:9090\"\n"), 0o600))
		}
		code, stdout, stderr := tRun(t, args...)
		require.Equal(t, exitConfig, code, stderr)
		require.Empty(t, stdout)
		require.Contains(t, stderr, `metrics.address: "localhost:9090" is what pprof has too ("127.0.0.1:9090")`)
	}
	require.NoDirExists(t, root, "nothing has been made")
}
