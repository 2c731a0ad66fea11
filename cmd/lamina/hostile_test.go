package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
)

// rawCodec sends bytes as they are, under the name of protobuf.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	b, ok := v.([]byte)
	if !ok {
		return nil, fmt.Errorf("%T", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(b)}, nil
}

func (rawCodec) Unmarshal(mem.BufferSlice, any) error { return nil }

var _ encoding.CodecV2 = rawCodec{}

// tTree is the names below a directory, but for those in some of it.
func tTree(t *testing.T, dir string) (names []string) {
	t.Helper()
	if err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		names = append(names, path)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return names
}

// TestHostileClient calls a daemon, over its socket, with what no containerd sends: it answers each, reaches nothing outside of its root,
// lists what it has taken, and stops in order.
func TestHostileClient(t *testing.T) {
	needRoot(t)
	outside := t.TempDir()
	root, address := filepath.Join(outside, "a root with spaces", "root"), tSocketPath(t)
	d := startDaemon(t, "--config", tFile(t, fmt.Sprintf("root = %q\naddress = %q\n", root, address)))
	sn := tProxy(t, d, address, "lamina")
	taken := tHostileKeys(t, sn)
	taken += tManyLabels(t, sn)
	tHostileLabels(t, sn)
	tHostileBytes(t, address)
	for _, name := range []string{"", "../lamina", "/templates", "lamina\x00", "lamina/../lamina", strings.Repeat("n", 1<<20)} {
		other := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(mustDial(t, address)), name)
		if _, err := other.Prepare(t.Context(), "key", ""); !errdefs.IsInvalidArgument(err) {
			t.Errorf("the name %.20q: %v", name, err)
		}
	}
	listed := 0
	if err := sn.Walk(t.Context(), func(context.Context, snapshots.Info) error { listed++; return nil }); err != nil || listed != taken {
		t.Errorf("%d are listed of %d: %v", listed, taken, err)
	}
	if code := d.wait(t); code != exitOK {
		t.Errorf("exit code %d: %q", code, d.stderr.lines())
	}
	for _, name := range tTree(t, outside) {
		if !strings.HasPrefix(name, root) && !strings.HasPrefix(root, name) {
			t.Errorf("outside of the root: %s", name)
		}
	}
	for _, line := range d.stderr.lines() {
		if strings.ContainsAny(line, "\x1b\x00") {
			t.Errorf("the log has an escape in it: %.100q", line)
		}
	}
}

// tHostileKeys returns how many of the keys were taken.
func tHostileKeys(t *testing.T, sn snapshots.Snapshotter) (taken int) {
	t.Helper()
	for key, good := range map[string]bool{
		"k": true, "../../../../../../tmp/k": true, "/etc/k": true, "..": true, "a\x00b": true, "a\nlevel=error b": true, "a,upperdir=/etc": true,
		"a:b": true, `a\b`: true, "\x1b[2J\x1b]0;owned\a": true, "1": true, "union/1": true, strings.Repeat("k", 8<<10): true,
		"": false, strings.Repeat("k", 8<<10+1): false, strings.Repeat("k", 1<<20): false, strings.Repeat("k", 17<<20): false,
	} {
		mounts, err := sn.Prepare(t.Context(), key, "")
		if good != (err == nil) || err != nil && !errdefs.IsInvalidArgument(err) && !errdefs.IsResourceExhausted(err) {
			t.Errorf("%.30q (%d bytes): %.200v", key, len(key), err)
		}
		if err == nil {
			taken++
		}
		for _, m := range mounts {
			if strings.Contains(m.Source, "etc") || strings.Contains(strings.Join(m.Options, ","), "/etc") {
				t.Errorf("%q: %v", key, m)
			}
		}
	}
	return taken
}

// tHostileLabels prepares snapshots that are refused.
func tHostileLabels(t *testing.T, sn snapshots.Snapshotter) {
	t.Helper()
	const uid, gid = snapshots.LabelSnapshotUIDMapping, snapshots.LabelSnapshotGIDMapping
	for i, labels := range []map[string]string{
		{"l": strings.Repeat("v", 4096)},
		{"l": strings.Repeat("v", 1<<20)},
		{uid: "0:0:1,upperdir=/etc", gid: "0:0:1"},
		{uid: "0:0:1\n0:0:2", gid: "0:0:1"},
		{uid: "0:0:1", gid: `0:0:1:lowerdir=\,`},
		{uid: "0:0:99999999999", gid: "0:0:1"},
		{snapshots.LabelSnapshotMaxSize: "-1"},
		{snapshots.LabelSnapshotMaxSize: "1e9"},
		{snapshots.LabelSnapshotMaxSize: "../../1"},
		{snapshots.LabelSnapshotMaxSize: "99999999999999999999999999"},
	} {
		if _, err := sn.Prepare(t.Context(), fmt.Sprint("labelled-", i), "", snapshots.WithLabels(labels)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%.60q: %.200v", labels, err)
		}
	}
}

// tManyLabels returns how many snapshots it has made: they have more labels than a message has room for.
func tManyLabels(t *testing.T, sn snapshots.Snapshotter) (made int) {
	t.Helper()
	many := map[string]string{"containerd.io/snapshot.ref": "../../etc\n,:\\", "a.b.c.d/e": "x,upperdir=/etc"}
	for i := range 10_000 {
		many[fmt.Sprintf("label.%d", i)] = fmt.Sprintf("a value of some bytes, %d", i)
	}
	large := map[string]string{}
	for i := range 256 {
		large[fmt.Sprint(i)] = strings.Repeat("v", 4000)
	}
	labels := many
	for ; made < 20; made++ {
		if _, err := sn.View(t.Context(), fmt.Sprint("many-", made), "", snapshots.WithLabels(labels)); err != nil {
			t.Errorf("%d labels: %v", len(labels), err)
			return made
		}
		labels = large
	}
	return made
}

// tHostileBytes sends requests that are no messages, or hold text that is not UTF-8.
func tHostileBytes(t *testing.T, address string) {
	t.Helper()
	binary := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "lamina")
	binary = protowire.AppendString(protowire.AppendTag(binary, 2, protowire.BytesType), "\xff\xfe key")
	for _, body := range [][]byte{binary, []byte("\xff\xff\xff\xff"), bytes.Repeat([]byte{0x0a}, 1<<20), nil} {
		err := mustDial(t, address).Invoke(t.Context(), "/containerd.services.snapshots.v1.Snapshots/Prepare", body, nil, grpc.ForceCodecV2(rawCodec{}))
		if code := status.Code(err); code != codes.Internal && code != codes.InvalidArgument {
			t.Errorf("%.20q: %v", body, err)
		}
	}
}

func TestListenRefusesOpenDirectory(t *testing.T) {
	for mode, good := range map[os.FileMode]bool{0o777: false, 0o702: false, 0o755: true, 0o777 | os.ModeSticky: true} {
		path := tSocketPath(t)
		dir := filepath.Dir(path)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		s, err := listen(t.Context(), "admin.address", path)
		if good != (err == nil) || err != nil && !strings.HasPrefix(err.Error(), "admin.address: other users may write to "+dir) {
			t.Errorf("%v: %v", mode, err)
		}
		if err == nil {
			_ = s.release()
		}
	}
}

// FuzzSettings holds a configuration that is taken to be one that can be written and read again.
func FuzzSettings(f *testing.F) {
	for _, seed := range []string{
		"", "root = \"/a\\u0000b\"", "address = \"/a\\nb\"", "[snapshotters.\"../x\"]\nbackend = \"thin\"", "root = \"/a/../../etc\"", "[thin]\ndata_size = \"1e99\"",
		"[union]\nvolatile = true\nmax_size = \"-1\"", "[union.aufs]\nxino = \"/a,b\"", "root = 1", "[log]\nlevel = \"loud\"", "\xff", "[metrics]\naddress = \"0.0.0.0:1\"",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := parseSettings("file", text)
		if err != nil || s.check() != nil {
			return
		}
		if strings.ContainsAny(s.Root+s.Address, "\x00\n") || strings.ContainsAny(s.Root, `,:\`) {
			t.Errorf("taken: %q, %q", s.Root, s.Address)
		}
		s.Admin.Address = s.adminAddress()
		var out bytes.Buffer
		if err := writeTOML(&out, s); err != nil {
			t.Fatal(err)
		}
		if again, err := parseSettings("file", out.Bytes()); err != nil || again.check() != nil {
			t.Errorf("%s: %v, %v", out.String(), err, again.check())
		}
	})
}
