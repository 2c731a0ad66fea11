package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
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

// rebuild makes the program that becomes process 1, and names it in s.
func rebuild(ctx context.Context, s *spec) error {
	name := filepath.Join(runDir, filepath.Base(s.Init))
	cmd := exec.CommandContext(ctx, "go", append(s.Rebuild[:len(s.Rebuild):len(s.Rebuild)], "-o", name)...)
	// Nothing may stay where this process's namespace is not.
	cmd.Env = setenv(s.Env, "GOTMPDIR", runDir)
	cmd.Dir = s.Dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("the race detector does not work in User-Mode Linux, and building the test without it: %w: %s", err, bytes.TrimSpace(out))
	}
	s.Init = name
	if s.Self {
		s.Path = name
	}
	return nil
}
