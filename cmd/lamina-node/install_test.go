package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/containerd/api/services/introspection/v1"
	"github.com/stretchr/testify/require"
	rpc "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A testNode has directories of its own, a systemd that only says what it was asked for, and a containerd that answers over its socket.
type testNode struct {
	*node
	t      *testing.T
	asked  []string
	masked bool
	begin  func(unit string) error // what a restart does
	answer func() (*introspection.PluginsResponse, error)
	// stopServing ends its containerd.
	stopServing func()
	introspection.UnimplementedIntrospectionServer
}

func newTestNode(t *testing.T) *testNode {
	t.Helper()
	n := testNodeIn(t, t.TempDir())
	for _, name := range []string{"image/lamina", "image/lamina.service", "config/config.toml", "config/cri.toml", "config/systemd.toml"} {
		n.write(name, "first")
	}
	n.write(containerdMain, `imports = ["/etc/containerd/conf.d/*.toml"]`)
	return n
}

// testNodeIn is one that has been before.
func testNodeIn(t *testing.T, root string) *testNode {
	t.Helper()
	n := &testNode{t: t, begin: func(string) error { return nil }, answer: served}
	n.node = &node{root: root, image: filepath.Join(root, "image"), config: filepath.Join(root, "config"), out: &bytes.Buffer{}, systemd: n}
	_ = os.Remove(n.at(containerdSocket)) // of one that was killed
	require.NoError(t, os.MkdirAll(filepath.Dir(n.at(containerdSocket)), 0o755))
	listener, err := net.Listen("unix", n.at(containerdSocket))
	require.NoError(t, err)
	server := grpc.NewServer()
	introspection.RegisterIntrospectionServer(server, n)
	done := make(chan struct{})
	go func() {
		_ = server.Serve(listener)
		close(done)
	}()
	n.stopServing = func() { // and waits for its end: one that had not begun removes the socket by its name then
		server.Stop()
		<-done
	}
	t.Cleanup(n.stopServing)
	return n
}

func served() (*introspection.PluginsResponse, error) {
	return &introspection.PluginsResponse{Plugins: []*introspection.Plugin{{}}}, nil
}

// servedUnless has containerd's CRI plugin refuse a file that holds that.
func (n *testNode) servedUnless(content string) {
	n.answer = func() (*introspection.PluginsResponse, error) {
		if is(n.at(containerdFiles[1]), content) {
			return &introspection.PluginsResponse{Plugins: []*introspection.Plugin{{InitErr: &rpc.Status{Message: "no"}}}}, nil
		}
		return served()
	}
}

func (n *testNode) Plugins(context.Context, *introspection.PluginsRequest) (*introspection.PluginsResponse, error) {
	return n.answer()
}

func (n *testNode) write(name, content string) {
	n.t.Helper()
	require.NoError(n.t, put(file{to: n.at(name), text: content}))
}

// restarts are those of the daemon and of containerd since it was last asked.
func (n *testNode) restarts() (units []string) {
	units = slices.DeleteFunc(n.asked, func(unit string) bool { return unit == printUnit })
	n.asked = nil
	return units
}

func (n *testNode) property(_ context.Context, unit, name string) (string, error) {
	switch {
	case name == "ActiveState":
		return "active", nil
	case name == "LoadState" && n.masked:
		return "masked", nil
	case name == "LoadState":
		return "loaded", nil
	}
	return filepath.Join(units, unit), nil
}

func (n *testNode) enable(context.Context, ...string) error   { return nil }
func (n *testNode) disable(context.Context, ...string) error  { return nil }
func (n *testNode) start(ctx context.Context, _ string) error { return ctx.Err() }
func (n *testNode) reload(ctx context.Context) error          { return ctx.Err() }
func (n *testNode) restart(ctx context.Context, u string) error {
	n.asked = append(n.asked, u)
	if u == printUnit {
		text, err := os.ReadFile(n.at(laminaConfig))
		return errors.Join(err, put(file{to: n.at(containerdFiles[0]), text: string(text)}))
	}
	return errors.Join(n.begin(u), ctx.Err())
}

func (n *testNode) requireOnNode(content string) {
	n.t.Helper()
	for _, name := range kept {
		require.True(n.t, is(n.at(name), content), name)
	}
}

// TestCheckInstalled is ready with what this pod installs, not with what services had before.
func TestCheckInstalled(t *testing.T) {
	n := newTestNode(t)
	n.begin = func(string) error {
		require.Error(t, n.check(t.Context()), "before it is done")
		return nil
	}
	require.NoError(t, n.install(t.Context()))
	require.NoError(t, n.check(t.Context()))
	require.Equal(t, []string{laminaUnit, containerdUnit}, n.restarts())
	require.NoError(t, n.install(t.Context()))
	require.Empty(t, n.restarts())
	for _, name := range []string{"image/lamina", "config/config.toml", "config/cri.toml"} {
		n.write(name, "second")
		require.Error(t, n.check(t.Context()), name)
		require.NoError(t, n.install(t.Context()))
		require.NoError(t, n.check(t.Context()))
	}
}

// TestStopped is told to stop while containerd restarts: that says nothing of the files.
func TestStopped(t *testing.T) {
	n := newTestNode(t)
	ctx, stop := context.WithCancel(t.Context())
	n.begin = func(unit string) error {
		if unit == containerdUnit {
			stop()
		}
		return nil
	}
	require.ErrorIs(t, n.install(ctx), context.Canceled)
	require.NoFileExists(t, n.at(refusedWith))
	require.Equal(t, []string{laminaUnit, containerdUnit}, n.restarts())

	n.begin = func(unit string) error {
		if unit == containerdUnit {
			return &jobError{"restart", unit, "canceled"}
		}
		return nil
	}
	require.Error(t, n.install(t.Context()))
	require.NoFileExists(t, n.at(refusedWith))
	require.Equal(t, []string{containerdUnit}, n.restarts())

	n.begin = func(string) error { return nil }
	momentary := 2
	n.answer = func() (*introspection.PluginsResponse, error) {
		if momentary--; momentary >= 0 {
			return nil, status.Error(codes.Unavailable, "not yet")
		}
		return served()
	}
	require.NoError(t, n.install(t.Context()))
	require.Equal(t, []string{containerdUnit}, n.restarts())
	require.NoError(t, n.check(t.Context()))
}

// TestStoppedFallingBack is told to stop when containerd has just refused the files: it gets what it had all the same.
func TestStoppedFallingBack(t *testing.T) {
	n := newTestNode(t)
	require.NoError(t, n.install(t.Context()))
	n.write("config/cri.toml", "second")
	n.servedUnless("second")
	ctx, stop := context.WithCancel(t.Context())
	tries := 0
	n.begin = func(string) error {
		if tries++; tries == 2 {
			stop()
		}
		return nil
	}
	n.systemd = undisturbed{n}
	require.Error(t, n.install(ctx))
	require.Error(t, ctx.Err())
	n.requireOnNode("first")
	require.FileExists(t, n.at(refusedWith))
}

// undisturbed answers a restart that was begun whatever its context is.
type undisturbed struct{ *testNode }

func (n undisturbed) restart(ctx context.Context, unit string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return n.testNode.restart(context.WithoutCancel(ctx), unit)
}

// TestRefused has everything as it was before it says no, says it once, and forgets it with files that are accepted.
func TestRefused(t *testing.T) {
	for name, refuse := range map[string]func(*testNode){
		"by the CRI plugin": func(n *testNode) { n.servedUnless("second") },
		"by containerd": func(n *testNode) {
			n.begin = func(unit string) error {
				if unit == containerdUnit && is(n.at(containerdFiles[1]), "second") {
					return &jobError{"restart", unit, "failed"}
				}
				return nil
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newTestNode(t)
			require.NoError(t, n.install(t.Context()))
			for _, name := range []string{"config/config.toml", "config/cri.toml", "config/systemd.toml"} {
				n.write(name, "second")
			}
			n.restarts()
			refuse(n)
			begin := n.begin
			n.begin = func(unit string) error {
				require.NoFileExists(t, n.at(refusedWith), "as long as the files are there")
				return begin(unit)
			}
			require.Error(t, n.install(t.Context()))
			require.Equal(t, []string{laminaUnit, containerdUnit, laminaUnit, containerdUnit}, n.restarts())
			n.requireOnNode("first")
			require.Error(t, n.check(t.Context()))
			require.Error(t, n.install(t.Context()))
			require.Empty(t, n.asked)

			n.begin = begin
			n.write(containerdFiles[1], "second") // by hand
			require.Error(t, n.install(t.Context()))
			require.Equal(t, []string{containerdUnit}, n.restarts())
			n.requireOnNode("first")

			for _, name := range []string{"config/config.toml", "config/cri.toml", "config/systemd.toml"} {
				n.write(name, "third")
			}
			require.NoError(t, n.install(t.Context()))
			n.requireOnNode("third")
			require.NoFileExists(t, n.at(refusedWith))
			require.Equal(t, []string{laminaUnit, containerdUnit}, n.restarts())
		})
	}
}

// TestFallBackFails says that containerd serves no kubelet with what it had either, and thus nothing of the files.
func TestFallBackFails(t *testing.T) {
	n := newTestNode(t)
	n.answer = func() (*introspection.PluginsResponse, error) { return &introspection.PluginsResponse{}, nil }
	require.ErrorContains(t, n.install(t.Context()), "with what it had before: containerd has no CRI plugin")
	require.NoFileExists(t, n.at(containerdFiles[1]), "the first files for containerd")
	require.NoFileExists(t, n.at(refusedWith))
}

// TestRemove restarts a containerd that was told of Lamina, be it by files that nobody has accepted, and no other.
func TestRemove(t *testing.T) {
	n := newTestNode(t)
	n.write(containerdFiles[1], "killed after that")
	n.begin = func(string) error { return errors.New("stopped") }
	require.Error(t, n.remove(t.Context()))
	require.Equal(t, []string{containerdUnit}, n.restarts())
	n.begin = func(string) error { return nil }
	require.NoError(t, n.remove(t.Context()))
	require.Equal(t, []string{containerdUnit}, n.restarts(), "as it was not yet")
	require.NoError(t, n.remove(t.Context()))
	require.Empty(t, n.restarts())

	require.NoError(t, n.install(t.Context()))
	require.NoError(t, n.remove(t.Context()))
	left, err := os.ReadDir(n.at("/opt/lamina"))
	require.NoError(t, err)
	require.Empty(t, left)
}

// TestRefuse is of nodes that are not to be touched.
func TestRefuse(t *testing.T) {
	n := newTestNode(t)
	for imports, want := range map[string]string{
		`["conf.d/lamina-*.toml"]`:                         "does not import /etc/containerd/conf.d/lamina.toml",
		`["conf.d/lamina.toml", "conf.d/lamina-cri.toml"]`: "does not import /etc/containerd/conf.d/lamina-systemd.toml",
		`["other.toml"]`:                                   "does not import",
	} {
		n.write(containerdMain, "imports = "+imports)
		require.ErrorContains(t, n.install(t.Context()), want)
	}
	n.write(containerdMain, `imports = ["conf.d/lamina.toml", "conf.d/lamina-*.toml"]`)
	n.masked = true
	require.ErrorContains(t, n.install(t.Context()), "masked")
	require.Empty(t, n.asked)
	n.masked = false
	require.NoError(t, n.install(t.Context()))
}
