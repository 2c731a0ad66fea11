package integration

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lamina-snapshotter/lamina/integration/guest"
)

// programsVariable names a directory with the programs that build would make:
// a guest has neither the time nor a cache for that.
const programsVariable = "LAMINA_TEST_PROGRAMS"

// runTests runs the tests and benchmarks that the flags select and returns the
// exit code. Those that need device mapper, or quotas, by their names run in a guest if this
// kernel has no device mapper, after the others and within the same -test.timeout.
func runTests(m *testing.M) (code int, err error) {
	inGuest, err := guest.Needed()
	if err != nil {
		return 0, err
	}
	if !inGuest {
		return m.Run(), nil
	}
	thin, others, err := selectedTests()
	if err != nil {
		return 0, err
	}
	if len(thin) == 0 {
		return m.Run(), nil
	}
	// Without this log go test does not keep the result, of which a part is that of
	// tests in a guest, where nobody writes down what they read.
	if err := flag.Set("test.testlogfile", ""); err != nil {
		return 0, err
	}
	skip, start := flagValue("test.skip"), time.Now()
	if len(others) > 0 {
		if err := flag.Set("test.skip", skipAlso(skip, thin)); err != nil {
			return 0, err
		}
		if code = m.Run(); code != 0 && flagValue("test.failfast") == "true" {
			return code, nil
		}
	}
	inner, err := runInGuests(thin, others, skip, start)
	return max(code, inner), err
}

// alone are the tests that take long, the longest first. Each has a guest of its own, and two guests run at once, as each
// uses one processor only. All other tests for thin share one, and so do those of quotas; they come first, as they take longer still.
var alone = []string{
	"TestThinFailpoints", "TestThinConformance", "TestThinLife", "TestThinKilledDaemon", "TestThinPowerCut", "TestQuotaConformance",
}

const guestsAtOnce = 2

// runInGuests runs the tests named thin, and none of the others. It returns the worst exit code of them.
func runInGuests(thin, others []string, skip string, start time.Time) (int, error) {
	timeout, err := time.ParseDuration(flagValue("test.timeout"))
	if err := errors.Join(err, guest.Prebuild()); err != nil {
		return 0, err
	}
	groups := grouped(thin)
	ended := make(chan error, len(groups))
	turns := make(chan struct{}, guestsAtOnce)
	for _, group := range groups {
		turns <- struct{}{}
		if timeout > 0 {
			if err := flag.Set("test.timeout", max(timeout-time.Since(start), time.Second).String()); err != nil {
				return 0, err
			}
		}
		left := skipAlso(skip, append(without(thin, group), others...))
		if len(groups) == 1 {
			return runInGuest(left, len(others) > 0)
		}
		wait, err := startBeside(left)
		if err != nil {
			return 0, err
		}
		go func() {
			ended <- wait()
			<-turns
		}()
	}
	code := 0
	for range groups {
		err := <-ended
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.Exited() {
			code = max(code, exit.ExitCode())
		} else if err != nil {
			return 0, err
		}
	}
	return code, nil
}

// grouped returns the tests that share a guest. Benchmarks are to have the machine for themselves.
func grouped(thin []string) (groups [][]string) {
	if flagValue("test.bench") != "" {
		return [][]string{thin}
	}
	quota := func(name string) bool { return strings.HasPrefix(name, "TestQuota") }
	rest := without(thin, alone)
	quotas := slices.DeleteFunc(slices.Clone(rest), func(name string) bool { return !quota(name) })
	for _, group := range [][]string{slices.DeleteFunc(rest, quota), quotas} {
		if len(group) > 0 {
			groups = append(groups, group)
		}
	}
	for _, name := range alone {
		if slices.Contains(thin, name) {
			groups = append(groups, []string{name})
		}
	}
	return groups
}

func without(names, left []string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool { return slices.Contains(left, name) })
}

// startBeside runs this program a second time with this -test.skip, and with a session and a guest of its own. The returned
// func waits for it and shows what it printed.
func startBeside(skip string) (wait func() error, err error) {
	if err := flag.Set("test.skip", skip); err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe", arguments(true)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	starter() <- func() { started <- cmd.Start() }
	return func() error {
		err := cmd.Wait()
		_, _ = os.Stdout.Write(out.Bytes())
		return err
	}, <-started
}

// runInGuest runs the tests that the flags select with this -test.skip in a
// guest. If others ran too, their profiles stay.
func runInGuest(skip string, others bool) (int, error) {
	if err := flag.Set("test.skip", skip); err != nil {
		return 0, err
	}
	programs := filepath.Join(session, "programs")
	if err := buildPlain(programs); err != nil {
		return 0, err
	}
	if err := os.Setenv(programsVariable, programs); err != nil {
		return 0, err
	}
	o := guest.Options{Writable: []string{programs}} // for the guest to see it; it writes nothing
	if timeout, err := time.ParseDuration(flagValue("test.timeout")); err == nil {
		o.Timeout = timeout
	}
	return guest.Tests(context.Background(), o, arguments(others))
}

// arguments returns the flags that are set, as arguments, and what follows them.
func arguments(withoutProfiles bool) (args []string) {
	profiles := regexp.MustCompile(`^test\.(coverprofile|gocoverdir|trace|.*profile)$`)
	flag.Visit(func(f *flag.Flag) {
		if !withoutProfiles || !profiles.MatchString(f.Name) {
			args = append(args, "-"+f.Name+"="+f.Value.String())
		}
	})
	return append(args, flag.Args()...)
}

func flagValue(name string) string { return flag.Lookup(name).Value.String() }

// guestNames are how the names of tests for a guest begin.
var guestNames = []string{"TestThin", "BenchmarkThin", "TestPowerCut", "TestQuota"}

// selectedTests returns the names of the tests and benchmarks that the flags
// select. A program does not know its tests, so it is run to list them.
func selectedTests() (thin, others []string, err error) {
	list, err := command(background, nil, "/proc/self/exe", "-test.list=.")
	if err != nil {
		return nil, nil, err
	}
	run, bench, skip := flagValue("test.run"), flagValue("test.bench"), flagValue("test.skip")
	for name := range strings.FieldsSeq(list) {
		pattern := run
		isBenchmark := strings.HasPrefix(name, "Benchmark")
		if isBenchmark {
			pattern = bench
		}
		switch {
		case isBenchmark && bench == "", !selects(pattern, name), skips(skip, name):
		case slices.ContainsFunc(guestNames, func(begin string) bool { return strings.HasPrefix(name, begin) }):
			thin = append(thin, name)
		default:
			others = append(others, name)
		}
	}
	return thin, others, nil
}

// skipAlso returns a pattern for -test.skip that skips these tests too.
func skipAlso(skip string, names []string) string {
	if len(names) == 0 {
		return skip
	}
	all := "^(" + strings.Join(names, "|") + ")$"
	if skip == "" {
		return all
	}
	return skip + "|" + all
}

// selects reports whether a pattern of -test.run selects a test, or sub-tests of
// it.
func selects(pattern, name string) bool {
	return slices.ContainsFunc(alternatives(pattern), func(elements []string) bool { return matches(elements[0], name) })
}

// skips reports whether a pattern of -test.skip skips a test with all sub-tests.
func skips(pattern, name string) bool {
	return pattern != "" && slices.ContainsFunc(alternatives(pattern), func(elements []string) bool {
		return len(elements) == 1 && matches(elements[0], name)
	})
}

// matches leaves it to package testing to complain of a bad pattern.
func matches(pattern, name string) bool {
	ok, err := regexp.MatchString(pattern, name)
	return ok || err != nil
}

// alternatives cuts a pattern as package testing does (match.go): at each "|"
// into alternatives, and those at each "/" into elements, but not in brackets.
func alternatives(pattern string) (alts [][]string) {
	var elements []string
	begin, square, round := 0, 0, 0
	for i := 0; i < len(pattern); i++ {
		switch c := pattern[i]; {
		case c == '\\':
			i++
		case c == '[':
			square++
		case c == ']':
			square = max(square-1, 0)
		case c == '(' && square == 0:
			round++
		case c == ')' && square == 0:
			round--
		case (c == '/' || c == '|') && square == 0 && round == 0:
			elements = append(elements, pattern[begin:i])
			begin = i + 1
			if c == '|' {
				alts, elements = append(alts, elements), nil
			}
		}
	}
	return append(alts, append(elements, pattern[begin:]))
}

// TestSelection is for the selection itself.
func TestSelection(t *testing.T) {
	for _, tt := range []struct {
		pattern, name string
		selects       bool
		skips         bool
	}{
		{"", "TestThin", true, false},
		{"Life", "TestThinLife", true, true},
		{"^TestLife$", "TestThinLife", false, false},
		{"Life/ext4", "TestThinLife", true, false},
		{"Life/a|Tree", "TestThinTree", true, true},
		{"Life/(a|Tree)", "TestThinTree", false, false},
		{"[/|]x/Tree", "TestTree", false, false},
		{`Tree\/x`, "TestTree", false, false},
		{"Tree|(", "TestTree", true, true},
	} {
		if got := selects(tt.pattern, tt.name); got != tt.selects {
			t.Errorf("%q selects %s: %v", tt.pattern, tt.name, got)
		}
		if got := skips(tt.pattern, tt.name); got != tt.skips {
			t.Errorf("%q skips %s: %v", tt.pattern, tt.name, got)
		}
	}
	if got, want := skipAlso("A/b", []string{"TestX", "TestY"}), "A/b|^(TestX|TestY)$"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
