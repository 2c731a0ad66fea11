package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// TestCanceled also stands for a guest whose kernel hangs: nothing in it has a
// part in its end.
func TestCanceled(t *testing.T) {
	t.Parallel()
	requireGuest(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	start := time.Now()
	_, err := Run(ctx, Program{Path: "/bin/sleep", Args: []string{"1000"}}, Options{})
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 10*time.Second {
		t.Errorf("after %v got error %v", time.Since(start), err)
	}
}

// A guest whose kernel stands still is ended long before its time is over.
func TestStandstill(t *testing.T) {
	requireGuest(t)
	const memory = 777 << 20
	ready := make(chan struct{})
	go func() {
		<-ready
		_ = syscall.Kill(kernelProcess(t, memory), syscall.SIGSTOP)
	}()
	start := time.Now()
	_, err := Run(t.Context(), Program{
		Path: "/bin/bash", Stdout: closer(ready), Args: []string{"-c", "echo ready; sleep 1000"},
	}, Options{Memory: memory, standstill: 5 * time.Second})
	if !errors.Is(err, ErrStoodStill) || !errors.Is(err, ErrNoReport) || time.Since(start) > 30*time.Second {
		t.Errorf("after %v got error %v", time.Since(start), err)
	}
}

// TestEscape kills the kernel of a guest and checks that the guest's processes
// do not go on as processes of the host. What they write in the guest's /tmp
// would then be in the host's.
func TestEscape(t *testing.T) {
	requireGuest(t)
	dir := t.TempDir()
	ready := make(chan struct{})
	go func() {
		<-ready
		_ = syscall.Kill(kernelProcess(t, escapeMemory), syscall.SIGKILL)
	}()
	_, err := Run(t.Context(), Program{
		Path: "/bin/bash", Stdout: closer(ready),
		Args: []string{"-c", "mkdir -p " + dir + "; echo ready; while :; do : >" + dir + "/escaped; done"},
	}, Options{Memory: escapeMemory})
	if !errors.Is(err, ErrNoReport) {
		t.Errorf("got error %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "escaped")); err == nil {
		t.Error("a process of the guest wrote to the host's files")
	}
}

const escapeMemory = 779 << 20

// closer is closed by the first write to it.
type closer chan struct{}

func (c closer) Write(p []byte) (int, error) {
	close(c)
	return len(p), nil
}

// TestParentKilled checks that nothing of a guest outlives who wanted it.
func TestParentKilled(t *testing.T) {
	cmd := tInner(t, "-test.run=TestInsideHang")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 6)
	if _, err := out.Read(line); err != nil || string(line) != "hangs\n" {
		t.Fatalf("read %q, %v", line, err)
	}
	if len(processes(t, innerMemory)) == 0 {
		t.Error("no process of the guest")
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	deadline := time.Now().Add(10 * time.Second)
	for len(processes(t, innerMemory)) > 0 && time.Now().Before(deadline) {
		time.Sleep(50 * time.Millisecond)
	}
	if left := processes(t, innerMemory); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// kernelProcess returns the one whose parent is not a process of the guest. It
// need not have the smallest number: they begin anew at the largest.
func kernelProcess(t *testing.T, memory int) int {
	t.Helper()
	pids := processes(t, memory)
	for _, pid := range pids {
		stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)) // it may be gone
		_, fields, _ := bytes.Cut(stat, []byte(") "))
		var state string
		var parent int
		if _, err := fmt.Sscan(string(fields), &state, &parent); err == nil && !slices.Contains(pids, parent) {
			return pid
		}
	}
	t.Errorf("no kernel among the processes %v", pids)
	return 1 << 30 // no process has it
}

// processes returns those of the guest with so many bytes of memory.
func processes(t *testing.T, memory int) (pids []int) {
	t.Helper()
	program, size := umlProgram, fmt.Sprintf("mem=%dM", memory>>20)
	if testMode() == modeQEMU {
		program, size = qemuProgram, fmt.Sprintf("-m\x00%dM\x00", memory>>20)
	}
	names, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		data, _ := os.ReadFile(name) // it may be gone
		if bytes.HasPrefix(data, []byte(program)) && bytes.Contains(data, []byte(size)) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	return pids
}
