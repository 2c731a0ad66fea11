// Package packaging tests the systemd unit and the Debian package: each by itself, and together on a node in a guest.
package packaging

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lamina-snapshotter/lamina/integration/guest"
)

// rootVariable makes what would skip a test a failure.
const rootVariable = "LAMINA_TEST_ROOT"

// packages is where the tests build, and what built has made. The tests do not run at once.
var packages struct{ dir, deb string }

func TestMain(m *testing.M) {
	guest.Reenter()
	dir, err := os.MkdirTemp("", "packages-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	packages.dir = dir
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// mustNeed skips a test that needs what is not here, or fails it if all is promised.
func mustNeed(t *testing.T, programs ...string) {
	t.Helper()
	for _, program := range programs {
		if _, err := exec.LookPath(program); err != nil {
			if os.Getenv(rootVariable) == "1" {
				t.Fatalf("%v, and %s=1 says that the test must run", err, rootVariable)
			}
			t.Skip(err)
		}
	}
}

// mustRun runs a program in the repository and returns what it printed.
func mustRun(t *testing.T, env []string, argv ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%q: %v\n%s%s", argv, err, &out, &errs)
	}
	return out.String()
}

// mustBuild builds the package as a version and returns its path.
func mustBuild(t *testing.T, dir string, env ...string) string {
	t.Helper()
	return strings.TrimSpace(mustRun(t, env, "packaging/build", dir))
}

// mustRepository returns the absolute path of the repository.
func mustRepository(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}
