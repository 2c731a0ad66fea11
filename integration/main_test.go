package integration

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/lamina-snapshotter/lamina/integration/guest"
)

// session is the directory of this run of the tests. Read-only after TestMain.
var session string

// rootVariable makes a missing root, or anything else that would skip a test,
// a failure.
const rootVariable = "LAMINA_TEST_ROOT"

// The first thread stays with the main goroutine, and no test runs on it.
// containerd mounts a long chain on a thread whose working directory it changes
// to that of the layers, and leaves it to the runtime to end the thread. The
// first one does not end, and would keep the layers' file system in use.
var _ = func() bool {
	runtime.LockOSThread()
	return true
}()

func TestMain(m *testing.M) {
	guest.Reenter()
	if dir := os.Getenv(janitorVariable); dir != "" {
		os.Exit(janitor(dir))
	}
	flag.Parse()
	if os.Getuid() != 0 || flagValue("test.list") != "" {
		os.Exit(m.Run()) // the tests skip, or fail, on their own
	}
	code, err := runSession(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "integration:", err)
		code = 1
	}
	os.Exit(code)
}

// runSession runs the tests and reports what they left behind as an error.
func runSession(m *testing.M) (int, error) {
	// Short: overlay's options and the path of a socket have bounds.
	dir, err := os.MkdirTemp("", "lamina-")
	if err != nil {
		return 0, err
	}
	// containerd's test suite makes its directories here too.
	if err := os.Setenv("TMPDIR", dir); err != nil {
		return 0, err
	}
	if err := becomeSubreaper(); err != nil {
		return 0, err
	}
	session = dir
	stopJanitor, err := startJanitor(dir)
	if err != nil {
		return 0, err
	}
	code, err := runTests(m)
	left, leaksErr := findLeaks(dir)
	if len(left) > 0 {
		leaksErr = fmt.Errorf("the tests left behind:\n%s", left)
	}
	stopJanitor()
	return code, errors.Join(err, leaksErr)
}

// requireRoot skips a test that needs root, or fails it if root is promised.
func requireRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv(rootVariable) == "1" {
		t.Fatalf("needs root, and %s=1 says that it must run", rootVariable)
	}
	t.Skip("needs root: it mounts and runs containers")
}

// repository is the root of the repository, where tests run in integration/.
func repository(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// mustHave returns the path of a file in the repository that setup makes.
func mustHave(t *testing.T, elem ...string) string {
	t.Helper()
	name := filepath.Join(append([]string{repository(t)}, elem...)...)
	if _, err := os.Stat(name); err != nil {
		t.Fatalf("%v: run integration/setup", err)
	}
	return name
}

// mustTempDir makes a directory in the session's. Unlike t.TempDir its path is
// short and it stays, for its logs, until the session ends.
func mustTempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(session, "t") //nolint:usetesting // needs a short path, see above
	if err != nil {
		t.Fatal(err)
	}
	return dir
}
