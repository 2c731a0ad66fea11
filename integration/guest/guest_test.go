package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// testMode is the machine that the tests use: UML, or the one that LAMINA_GUEST
// names.
func testMode() string {
	if chosen() == (qemu{}) {
		return modeQEMU
	}
	return "uml"
}

// requireGuest skips a test that starts guests where that is impossible.
func requireGuest(t *testing.T) {
	t.Helper()
	if err := canRun(chosen()); err != nil {
		if os.Getenv(rootVariable) == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

// tInner returns a command that runs tests of this binary in a guest. They
// leave nothing in the directory of temporary files.
func tInner(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	requireGuest(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	tmp := t.TempDir()
	t.Cleanup(func() {
		if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
			t.Errorf("left in TMPDIR: %v, %v", left, err)
		}
	})
	cmd := exec.CommandContext(t.Context(), exe, args...)
	cmd.Env = append(os.Environ(), innerVariable+"=inner", modeVariable+"="+testMode(), "TMPDIR="+tmp)
	return cmd
}

func tRun(t *testing.T, o Options, script string) (code int, stdout string, err error) {
	t.Helper()
	requireGuest(t)
	var out, errOut bytes.Buffer
	code, err = Run(t.Context(), Program{
		Path: "/bin/bash", Args: []string{"-c", script}, Stdout: &out, Stderr: &errOut,
	}, o)
	t.Logf("exit code %d; standard error: %s", code, &errOut)
	return code, out.String(), err
}

func TestPass(t *testing.T) {
	profiles := t.TempDir()
	cmd := tInner(t, "-test.v", "-test.run=TestInside$", "-test.bench=Inside", "-test.benchtime=10x",
		"-test.outputdir="+profiles, "-test.cpuprofile=cpu", "-test.memprofile=mem", "-word=hello")
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, &errOut)
	}
	for _, want := range []string{"word: hello inner\n", "--- PASS: TestInside", "BenchmarkInside", "ns/op", "\nPASS\n"} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
	if want := "to standard error\n"; errOut.String() != want {
		t.Errorf("standard error: got %q, want %q", &errOut, want)
	}
	for _, name := range []string{"cpu", "mem"} {
		if info, err := os.Stat(filepath.Join(profiles, name)); err != nil || info.Size() == 0 {
			t.Errorf("profile: %v, %v", info, err)
		}
	}
}

func TestExitCodes(t *testing.T) {
	timeout := time.Second
	if testMode() == modeQEMU { // where a stack may take as long
		timeout *= 10
	}
	for _, tt := range []struct {
		test string
		code int
		want string
	}{
		{"Fail", 1, "as it should"},
		{"Panic", 2, "panic: as it should"},
		{"Exit", 42, ""},
		{"Kill", 128 + int(syscall.SIGKILL), ""},
		{"Hang", 2, "panic: test timed out after " + timeout.String()},
	} {
		t.Run(tt.test, func(t *testing.T) {
			t.Parallel()
			cmd := tInner(t, "-test.run=TestInside"+tt.test+"$", "-test.timeout="+timeout.String())
			out, err := cmd.CombinedOutput()
			if got := cmd.ProcessState.ExitCode(); got != tt.code || !bytes.Contains(out, []byte(tt.want)) {
				t.Errorf("exit code %d, want %d, and %q in: %v\n%s", got, tt.code, tt.want, err, out)
			}
		})
	}
}

// TestRace checks that the race detector works in a guest.
func TestRace(t *testing.T) {
	if !raceEnabled || testMode() != modeQEMU {
		t.Skip("needs the race detector and a guest in QEMU")
	}
	out, err := tInner(t, "-test.run=TestInsideRace$").CombinedOutput()
	if err == nil || !bytes.Contains(out, []byte("WARNING: DATA RACE")) {
		t.Errorf("%v in:\n%s", err, out)
	}
}

// TestJSON checks that the markers of test2json pass the line.
func TestJSON(t *testing.T) {
	inner := tInner(t, "-test.v=test2json", "-test.run=TestInside(Fail)?$")
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"tool", "test2json"}, inner.Args...)...)
	cmd.Env = inner.Env
	out, _ := cmd.Output() // one of the two tests fails
	got := map[string]string{}
	for dec := json.NewDecoder(bytes.NewReader(out)); dec.More(); {
		var event struct{ Action, Test string }
		if err := dec.Decode(&event); err != nil {
			t.Fatalf("%v in:\n%s", err, out)
		}
		got[event.Test] = event.Action
	}
	if got["TestInside"] != "pass" || got["TestInsideFail"] != "fail" || got[""] != "fail" {
		t.Errorf("got %v from:\n%s", got, out)
	}
}

func TestDeviceMapper(t *testing.T) {
	t.Parallel()
	code, out, err := tRun(t, Options{}, `
		dmsetup targets | grep -q thin-pool && dmsetup create thing --table '0 8 zero' &&
		dmsetup info -c --noheadings -o name && exit 7`)
	if code != 7 || out != "thing\n" || err != nil {
		t.Errorf("got exit code %d, %q, %v", code, out, err)
	}
}

// TestOutput checks that no byte of much output is lost or changed.
func TestOutput(t *testing.T) {
	t.Parallel()
	code, out, err := tRun(t, Options{}, `seq 200000; printf '\x16\x00\x04\r\n\xff'`)
	var want strings.Builder
	for i := range 200000 {
		fmt.Fprintln(&want, i+1)
	}
	want.WriteString("\x16\x00\x04\r\n\xff")
	if code != 0 || err != nil || out != want.String() {
		t.Errorf("exit code %d, %v, %d bytes, want %d", code, err, len(out), want.Len())
	}
}

func TestWritable(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	code, _, err := tRun(t, Options{Writable: []string{dir}}, "echo hello >"+dir+"/file")
	data, readErr := os.ReadFile(filepath.Join(dir, "file"))
	if code != 0 || string(data) != "hello\n" || err != nil || readErr != nil {
		t.Errorf("exit code %d, %q, %v, %v", code, data, err, readErr)
	}
}

func TestKernelPanic(t *testing.T) {
	t.Parallel()
	_, _, err := tRun(t, Options{}, "echo c >/proc/sysrq-trigger; sleep 1000")
	if !errors.Is(err, ErrNoReport) || !strings.Contains(fmt.Sprint(err), "sysrq triggered crash") {
		t.Errorf("got error %v", err)
	}
}

// TestBlocked runs a program that no signal ends, for it waits for a device.
func TestBlocked(t *testing.T) {
	t.Parallel()
	start := time.Now()
	_, _, err := tRun(t, Options{Timeout: 3 * time.Second}, `
		dmsetup create stuck --table '0 8 zero' && dmsetup mknodes && dmsetup suspend stuck && dd if=/dev/mapper/stuck of=/dev/null`)
	text := fmt.Sprint(err)
	if !strings.Contains(text, "did not end in 3s") || !strings.Contains(text, "task:dd") {
		t.Errorf("after %v got error %v", time.Since(start), err)
	}
}

func TestNeedsGuest(t *testing.T) {
	for mode, want := range map[string]bool{"native": false, "uml": true, "qemu": true} {
		t.Setenv(modeVariable, mode)
		if got, err := Needed(); got != want || err != nil {
			t.Errorf("%s: got %v, %v", mode, got, err)
		}
	}
	t.Setenv(modeVariable, "vmware")
	if _, err := Needed(); err == nil {
		t.Error("an unknown mode is no error")
	}
}

// A kernel with device mapper is no place for tests of SELinux.
func TestNeedsGuestForSELinux(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("LAMINA_TEST_ROOT") == "1" {
			t.Fatal("needs root, and LAMINA_TEST_ROOT=1 says that it must run")
		}
		t.Skip("needs root")
	}
	requireGuest(t)
	t.Setenv(modeVariable, "auto")
	have := func(context.Context) bool { return true }
	for _, selinux := range []bool{false, true} {
		if got, err := needed(Options{SELinux: selinux}, have); got != selinux || err != nil {
			t.Errorf("with SELinux %t: %v, %v", selinux, got, err)
		}
	}
}

func TestConsole(t *testing.T) {
	var c console
	for i := range 2 * consoleLines {
		fmt.Fprintf(&c, "line %d\r\n", i)
	}
	fmt.Fprint(&c, "part")
	lines := strings.Split(c.String(), "\n")
	if len(lines) != consoleLines+1 || lines[0] != "\tline 100" || lines[consoleLines] != "\tpart" {
		t.Errorf("got %d lines: %q", len(lines), lines)
	}
}
