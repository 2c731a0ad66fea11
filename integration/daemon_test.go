package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/metadata"
)

// background outlives a test, for what its cleanup does.
var background = context.Background()

// A daemon is a Lamina that a test started.
type daemon struct {
	*process
	dir     string
	rootDir string
	backend backend
	build   func() (string, error) // which program it is
	env     []string
	toml    string // of the configuration, but root and address
}

// startDaemon starts bin/lamina with its root, its socket and its log in dir.
func startDaemon(t *testing.T, dir string, b backend) *daemon {
	t.Helper()
	return startDaemonWith(t, dir, b, b.toml())
}

// startDaemonWith is startDaemon with another configuration than that of one
// snapshotter on the backend.
func startDaemonWith(t *testing.T, dir string, b backend, toml string) *daemon {
	t.Helper()
	return startDaemonOn(t, dir, filepath.Join(dir, "root"), b, toml)
}

// startDaemonOn is startDaemonWith with a root elsewhere.
func startDaemonOn(t *testing.T, dir, root string, b backend, toml string) *daemon {
	t.Helper()
	d := newDaemon(t, dir, b, toml)
	d.rootDir = root
	if err := d.configure(toml); err != nil {
		t.Fatal(err)
	}
	d.process = d.serve(t)
	return d
}

// newDaemon is startDaemonWith that does not start it.
func newDaemon(t *testing.T, dir string, b backend, toml string) *daemon {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	d := &daemon{dir: dir, rootDir: filepath.Join(dir, "root"), backend: b, build: buildLamina}
	if err := d.configure(toml); err != nil {
		t.Fatal(err)
	}
	return d
}

// configure writes the configuration of a daemon that does not run.
func (d *daemon) configure(toml string) error {
	d.toml = toml
	config := fmt.Sprintf("root = %q\naddress = %q\n%s", d.root(), d.socket(), toml)
	return os.WriteFile(d.config(), []byte(config), 0o600)
}

// connect returns containerd's client of one of the daemon's snapshotters.
func (d *daemon) connect(name string) (snapshots.Snapshotter, func() error, error) {
	conn, err := grpc.NewClient("unix://"+d.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, err
	}
	sn := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), name)
	return sn, func() error { return errors.Join(sn.Close(), conn.Close()) }, nil
}

func (d *daemon) serve(t *testing.T) *process {
	t.Helper()
	p := d.launch(t)
	if err := p.awaitReady(); err != nil {
		t.Fatal(err)
	}
	return p
}

// launch starts the program and does not wait.
func (d *daemon) launch(t *testing.T) *process {
	t.Helper()
	return launchProcess(t, d.dir, "lamina", d.env, mustBuild(t, d.build), "serve", "--config", d.config())
}

// restart starts the daemon again, after a stop or a kill.
func (d *daemon) restart() {
	d.t.Helper()
	d.process = d.serve(d.t)
}

func (d *daemon) root() string   { return d.rootDir }
func (d *daemon) socket() string { return filepath.Join(d.dir, "lamina.sock") }
func (d *daemon) config() string { return filepath.Join(d.dir, "config.toml") }

// containerdConfig returns what Lamina says that containerd's config needs.
func (d *daemon) containerdConfig(version int) string {
	d.t.Helper()
	out, err := command(background, nil, mustBuild(d.t, buildLamina), "config", "containerd",
		"--config", d.config(), "--version", fmt.Sprint(version))
	if err != nil {
		d.t.Fatal(err)
	}
	return out
}

// layers returns the names of what lies in the backend's place besides what it
// keeps for itself: in the union directory a file of ownership, a reserve and an
// empty directory, in a pool its first volume, the template.
func (d *daemon) layers() []string {
	d.t.Helper()
	if d.backend.name == lamina.BackendThin {
		return mustVolumes(d.t, d.root())[1:]
	}
	entries, err := os.ReadDir(filepath.Join(d.root(), "union"))
	if err != nil {
		d.t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		beside := []string{"owner", "empty", ".reserve", ".spares"}
		if !slices.Contains(beside, e.Name()) && !strings.HasPrefix(e.Name(), ".spare-") {
			names = append(names, e.Name())
		}
	}
	return names
}

// check opens the store of a daemon that does not run, reports what is
// inconsistent in it, and returns the number of its snapshots.
func (d *daemon) check() (count int) {
	d.t.Helper()
	store, err := openKilled(filepath.Join(d.root(), "lamina.db"))
	if err != nil {
		d.t.Fatalf("the store: %v", err)
	}
	defer store.Close()
	for problem, err := range store.Check(d.t.Context()) {
		if err != nil {
			d.t.Fatalf("checking the store: %v", err)
		}
		d.t.Errorf("the store: %v", problem)
	}
	err = store.Walk(d.t.Context(), "lamina", func(metadata.Snapshot) error { count++; return nil })
	if err != nil {
		d.t.Fatalf("the store: %v", err)
	}
	return count
}
