package packaging

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lamina-snapshotter/lamina/integration/guest"
)

// What the package has to bring, as dpkg-deb lists it.
func TestDebContents(t *testing.T) {
	mustNeed(t, "dpkg-deb", "../bin/tools/nfpm")
	deb := built(t)
	arch := strings.TrimSpace(mustRun(t, nil, "dpkg", "--print-architecture"))
	if want := "lamina_" + version + "_" + arch + ".deb"; filepath.Base(deb) != want {
		t.Fatalf("it is %s, not %s", deb, want)
	}
	list := mustRun(t, nil, "dpkg-deb", "--contents", deb)
	for _, want := range []string{
		"-rwxr-xr-x root/root ./usr/bin/lamina",
		"-rw-r--r-- root/root ./usr/lib/systemd/system/lamina.service",
		"-rw-r--r-- root/root ./etc/lamina/config.toml",
		"-rw-r--r-- root/root ./usr/share/man/man1/lamina-serve.1.gz",
		"-rw-r--r-- root/root ./usr/share/man/man5/lamina-config.toml.5.gz",
		"-rw-r--r-- root/root ./usr/share/doc/lamina/operating.md",
		"-rw-r--r-- root/root ./usr/share/bash-completion/completions/lamina",
		"-rw-r--r-- root/root ./usr/share/zsh/vendor-completions/_lamina",
		"-rw-r--r-- root/root ./usr/share/fish/vendor_completions.d/lamina.fish",
		"-rw-r--r-- root/root ./usr/share/doc/lamina/copyright",
		"-rw-r--r-- root/root ./usr/share/doc/lamina/modules.gz",
	} {
		if !lists(list, want) {
			t.Errorf("it lacks %s:\n%s", want, list)
		}
	}
	control := mustRun(t, nil, "dpkg-deb", "--info", deb)
	for _, want := range []string{"Architecture: " + arch + "\n", "Version: " + version + "\n", "Recommends: containerd (>= 1.6) | containerd.io, e2fsprogs, thin-provisioning-tools\n"} {
		if !strings.Contains(control, want) {
			t.Errorf("it lacks %q:\n%s", want, control)
		}
	}
	if conffiles := mustRun(t, nil, "dpkg-deb", "--info", deb, "conffiles"); conffiles != "/etc/lamina/config.toml\n" {
		t.Errorf("conffiles are %q", conffiles)
	}
	text := mustRun(t, nil, "sh", "-c", `dpkg-deb --fsys-tarfile "$0" | tar --extract --to-stdout ./usr/share/doc/lamina/modules.gz | gzip -d`, deb)
	for _, want := range []string{"==== go.etcd.io/bbolt@", "---- LICENSE"} {
		if !strings.Contains(text, want) {
			t.Errorf("the licenses of its modules lack %q", want)
		}
	}
	second := mustBuild(t, t.TempDir(), "VERSION="+version, "TZ=Asia/Tokyo", "LC_ALL=C")
	if one, other := mustRead(t, deb), mustRead(t, second); !bytes.Equal(one, other) {
		t.Errorf("two builds differ, in %d and %d bytes", len(one), len(other))
	}
}

// version is that of the package that built returns.
const version = "0.1"

// built returns the package, which is built once for all tests.
func built(t *testing.T) string {
	t.Helper()
	if packages.deb == "" {
		packages.deb = mustBuild(t, packages.dir, "VERSION="+version)
	}
	return packages.deb
}

// lists says whether dpkg-deb has listed a file, whatever size and time it has.
func lists(list, want string) bool {
	for line := range strings.Lines(list) {
		fields := strings.Fields(line)
		if len(fields) == 6 && fields[0]+" "+fields[1]+" "+fields[5] == want {
			return true
		}
	}
	return false
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustWrite(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestNode installs, upgrades, removes and purges the package on a node with systemd and containerd: see testdata/node.
func TestNode(t *testing.T) {
	mustNeed(t, "dpkg", "systemctl", "deb-systemd-helper", "pgrep", "capsh", "../bin/tools/nfpm", "../bin/tools/containerd", "linux.uml")
	if os.Getuid() != 0 {
		if os.Getenv(rootVariable) == "1" {
			t.Fatal("needs root")
		}
		t.Skip("needs root: it starts a guest with disks")
	}
	dir := t.TempDir()
	tree, older, newer := filepath.Join(dir, "tree"), filepath.Join(dir, "older.deb"), filepath.Join(dir, "newer.deb")
	mustRun(t, nil, "dpkg-deb", "--raw-extract", built(t), tree)
	pack := func(deb string) { mustRun(t, nil, "dpkg-deb", "-Znone", "--build", tree, deb) } // to decompress takes seconds in a guest
	config, service := filepath.Join(tree, "etc/lamina/config.toml"), filepath.Join(tree, "usr/lib/systemd/system", unit)
	sample, text := mustRead(t, config), mustRead(t, service)
	mustWrite(t, config, append(sample, "# A line of the older sample.\n"...))
	mustWrite(t, service, bytes.Replace(text, []byte("RestartSec=2\n"), []byte("RestartSec=3\n"), 1))
	pack(older)
	mustWrite(t, config, sample)
	mustWrite(t, filepath.Join(tree, "usr/share/lamina-test/config.toml"), sample) // to be compared with
	mustWrite(t, service, text)
	mustRun(t, []string{"CGO_ENABLED=0"}, "go", "build", "-trimpath", "-ldflags", "-s -w -X main.version=0.2", "-o", filepath.Join(tree, "usr/bin/lamina"), "./cmd/lamina")
	mustRun(t, nil, "sed", "-i", "s/^Version: .*/Version: 0.2/", filepath.Join(tree, "DEBIAN/control"))
	pack(newer)
	image := filepath.Join("..", ".cache", "images", "small.tar")
	image, err := filepath.EvalSymlinks(image)
	if err == nil {
		image, err = filepath.Abs(image)
	}
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	code, err := guest.Run(t.Context(), guest.Program{
		Path: "/bin/bash", Args: []string{"testdata/node", mustRepository(t), image, older, newer},
		Stdout: &out, Stderr: &out,
	}, guest.Options{Timeout: 8 * time.Minute, Writable: []string{dir}}) // to be seen; nothing is written
	if err != nil || code != 0 || !strings.HasSuffix(out.String(), "\npassed\n") {
		t.Fatalf("exit code %d, %v:\n%s", code, err, &out)
	}
	t.Log("\n" + out.String())
}
