package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"
)

// rebuildArguments returns the arguments with which the go command builds this
// test again, without the race detector.
func rebuildArguments() ([]string, error) {
	info, ok := debug.ReadBuildInfo()
	pkg, isTest := "", false
	if ok {
		pkg, isTest = strings.CutSuffix(info.Path, ".test")
	}
	if !isTest {
		return nil, errors.New("a program with the race detector cannot run in User-Mode Linux")
	}
	args := []string{"test", "-c", pkg}
	for _, s := range info.Settings {
		if slices.Contains([]string{"-tags", "-ldflags", "-gcflags"}, s.Key) && s.Value != "" {
			args = slices.Insert(args, 2, s.Key+"="+s.Value)
		}
	}
	if mode := coverMode(); mode != "" {
		args = slices.Insert(args, 2, "-covermode="+mode)
	}
	return args, nil
}

// Prebuild builds this test as a guest of it will, so that only the linking is left to be done in the time that its tests have:
// after a change it takes minutes. Nothing of it stays but in the caches of the go command.
var Prebuild = sync.OnceValue(func() error {
	if !raceEnabled || os.Getenv(modeVariable) == modeQEMU {
		return nil
	}
	args, err := rebuildArguments()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	return goTest(exec.CommandContext(ctx, "go", append(args, "-o", os.DevNull)...))
})

// rebuild makes the program that becomes process 1, and names it in s.
func rebuild(ctx context.Context, s *spec) error {
	name := filepath.Join(runDir, filepath.Base(s.Init))
	cmd := exec.CommandContext(ctx, "go", append(s.Rebuild[:len(s.Rebuild):len(s.Rebuild)], "-o", name)...)
	// Nothing may stay where this process's namespace is not.
	cmd.Env = setenv(s.Env, "GOTMPDIR", runDir)
	cmd.Dir = s.Dir
	if err := goTest(cmd); err != nil {
		return err
	}
	s.Init = name
	if s.Self {
		s.Path = name
	}
	return nil
}

func goTest(cmd *exec.Cmd) error {
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("the race detector does not work in User-Mode Linux, and building the test without it: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}
