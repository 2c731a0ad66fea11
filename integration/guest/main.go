package guest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

const (
	// modeVariable chooses where tests run: "native", "uml", "qemu" or "auto".
	modeVariable = "LAMINA_GUEST"
	modeQEMU     = "qemu"

	// rootVariable makes a skip for want of root or device mapper a failure.
	rootVariable = "LAMINA_TEST_ROOT"
)

// testMargin is the time that tests have to end after their own timeout. With
// a machine's margin it is less than the minute after which go test kills them.
const testMargin = 10 * time.Second

// Main runs the tests of a package, here or in a guest, and returns the exit
// code. It is the first that TestMain calls.
//
// LAMINA_GUEST decides: "native" runs them here, "uml" and "qemu" in a guest of
// that kind, and "auto", as if it is not set, in UML if that is what they need.
// They run here without root too, so that those that need it can skip.
//
// In a guest a flag that names a file to be written, such as -test.cpuprofile,
// makes the directory of the file writable.
func Main(m *testing.M, o Options) int {
	Reenter()
	if !flag.Parsed() {
		flag.Parse()
	}
	inGuest, err := needed(o, HaveDeviceMapper)
	if err == nil && !inGuest {
		return m.Run()
	}
	code := 0
	if err == nil {
		if timeout, err := time.ParseDuration(flagValue("test.timeout")); err == nil && timeout > 0 {
			o.Timeout = timeout
		}
		code, err = Tests(context.Background(), o, os.Args[1:])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// Needed reports whether tests that require device mapper are to run in a
// guest, for a TestMain that has others too. If not they run here; those that
// cannot run at all then skip by [Require]. The flags are parsed.
func Needed() (bool, error) { return needed(Options{}, HaveDeviceMapper) }

// needed is Needed for tests in a guest with these options, given what looks for device mapper here. Those with SELinux are for
// no host that has it either: they give the kernel a policy.
func needed(o Options, have func(context.Context) bool) (bool, error) {
	switch mode := os.Getenv(modeVariable); mode {
	case "native":
		return false, nil
	case "uml", modeQEMU:
		return true, nil
	case "", "auto":
	default:
		return false, fmt.Errorf("%s=%s: want native, uml, qemu or auto", modeVariable, mode)
	}
	if os.Getuid() != 0 || flagValue("test.list") != "" {
		return false, nil
	}
	if !o.SELinux && have(context.Background()) {
		return false, nil
	}
	if err := canRun(chosen()); err != nil {
		if os.Getenv(rootVariable) == "1" {
			return false, fmt.Errorf("%w (%s=1 says that the tests must run)", err, rootVariable)
		}
		return false, nil // the tests skip
	}
	return true, nil
}

// Tests runs this test binary in a guest, with these arguments, and returns its
// exit code. A timeout in o is the -test.timeout among them: the tests have some
// seconds more to say what ran. After [ErrStoodStill] it says so and runs them
// once more. [Main] calls it for all tests of a package; who
// calls it for some says in args which.
func Tests(ctx context.Context, o Options, args []string) (int, error) {
	if err := Prebuild(); err != nil {
		return 0, err
	}
	exe, err := os.Executable()
	if err != nil {
		return 0, err
	}
	o.Writable = append(o.Writable, outputDirs()...)
	if o.Timeout > 0 {
		o.Timeout += testMargin
	}
	p := Program{
		Path:   exe,
		Args:   args,
		Env:    setenv(os.Environ(), modeVariable, "native"),
		Stdout: os.Stdout,
		Stderr: os.Stderr,
	}
	code, err := Run(ctx, p, o)
	if errors.Is(err, ErrStoodStill) {
		fmt.Fprintf(os.Stderr, "%v\nThe tests are run once more, in another guest.\n", err)
		code, err = Run(ctx, p, o)
	}
	return code, err
}

// outputDirs returns the directories that the tests will write to because of
// their flags.
func outputDirs() (dirs []string) {
	out := flagValue("test.outputdir")
	for _, name := range []string{"coverprofile", "cpuprofile", "memprofile", "blockprofile", "mutexprofile", "trace"} {
		if file := flagValue("test." + name); file != "" {
			if !filepath.IsAbs(file) {
				file = filepath.Join(out, file)
			}
			dirs = append(dirs, filepath.Dir(file))
		}
	}
	if file := flagValue("test.testlogfile"); file != "" {
		dirs = append(dirs, filepath.Dir(file))
	}
	for _, dir := range []string{flagValue("test.gocoverdir"), os.Getenv("GOCOVERDIR")} {
		if dir != "" {
			dirs = append(dirs, dir)
		}
	}
	if flagValue("test.artifacts") == "true" {
		dirs = append(dirs, filepath.Join(".", out))
	}
	if flagValue("test.fuzz") != "" {
		dirs = append(dirs, ".", flagValue("test.fuzzcachedir"))
	}
	return dirs
}

func flagValue(name string) string {
	f := flag.Lookup(name)
	if f == nil {
		return ""
	}
	return f.Value.String()
}

func coverMode() string { return testing.CoverMode() }
