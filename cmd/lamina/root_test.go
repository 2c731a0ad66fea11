package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/urfave/cli/v3"
)

// tRun runs one command line and returns its exit code and what it printed.
func tRun(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), append([]string{"lamina"}, args...), &out, &errs)
	return code, out.String(), errs.String()
}

// tFile writes a config file and returns its path.
func tFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCommandLine(t *testing.T) {
	empty := tFile(t, "")
	for _, tc := range []struct {
		name   string
		args   []string
		code   int
		stdout string // to be found in what it prints
		stderr string
	}{
		{name: "nothing", args: nil, code: exitOK, stdout: "Exit codes:"},
		{name: "help", args: []string{"--help"}, code: exitOK, stdout: "serve"},
		{name: "help of serve", args: []string{"serve", "--help"}, code: exitOK, stdout: "Exit codes:"},
		{name: "unknown command", args: []string{"srve"}, code: exitUsage, stderr: `"srve"`},
		{name: "unknown flag", args: []string{"serve", "--rot", "/x"}, code: exitUsage, stderr: "-rot"},
		{name: "unknown command like one", args: []string{"statsu"}, code: exitUsage, stderr: `did you mean "status"? (see "lamina --help")`},
		{name: "where to read on", args: []string{"pool", "grow"}, code: exitUsage, stderr: `(see "lamina pool grow --help")`},
		{name: "unknown below pool", args: []string{"pool", "stat"}, code: exitUsage, stderr: `did you mean "status"? (see "lamina pool --help")`},
		{name: "--version", args: []string{"--version"}, code: exitOK, stdout: "lamina "},
		{name: "--version of a command", args: []string{"--version", "status"}, code: exitUsage, stderr: `not with "status" (see "lamina --help")`},
		{name: "help of a flag", args: []string{"help", "--", "-x"}, code: exitUsage, stderr: "-x (see \"lamina help --help\")\n"},
		{name: "unlike any command", args: []string{"docker"}, code: exitUsage, stderr: `argument "docker" (see`},
		{name: "-v", args: []string{"-v"}, code: exitOK, stdout: " go1."},
		{name: "help", args: []string{"help"}, code: exitOK, stdout: "Exit codes:"},
		{name: "help of pool grow", args: []string{"help", "pool", "grow"}, code: exitOK, stdout: "lamina pool grow [options] SIZE"},
		{name: "help of nothing", args: []string{"help", "xyzzy"}, code: exitUsage, stderr: "'xyzzy'"},
		{name: "--help of nothing", args: []string{"xyzzy", "--help"}, code: exitUsage, stderr: "'xyzzy'"},
		{name: "argument", args: []string{"serve", "now"}, code: exitUsage, stderr: `"now"`},
		{name: "unknown below config", args: []string{"config", "docker"}, code: exitUsage, stderr: `"docker"`},
		{name: "version", args: []string{"version"}, code: exitOK, stdout: "lamina "},
		{name: "go version", args: []string{"version"}, code: exitOK, stdout: " go1."},
		{name: "config", args: []string{"config", "--config", empty}, code: exitOK, stdout: "/var/lib/lamina"},
		{name: "containerd 4", args: []string{"config", "containerd", "--config", empty, "--version", "4"}, code: exitUsage, stderr: "--version 4"},
		{name: "no such file", args: []string{"config", "--config", empty + ".no"}, code: exitConfig, stderr: empty + ".no"},
		{name: "relative root", args: []string{"config", "--config", empty, "--root", "x"}, code: exitConfig, stderr: `root: "x"`},
		{name: "bad level", args: []string{"config", "--config", empty, "--log-level", "loud"}, code: exitConfig, stderr: `log.level: "loud"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			code, stdout, stderr := tRun(t, tc.args...)
			if code != tc.code {
				t.Errorf("exit code %d, want %d; stderr: %s", code, tc.code, stderr)
			}
			if !strings.Contains(stdout, tc.stdout) {
				t.Errorf("stdout lacks %q:\n%s", tc.stdout, stdout)
			}
			if !strings.Contains(stderr, tc.stderr) {
				t.Errorf("stderr lacks %q:\n%s", tc.stderr, stderr)
			}
			if (stderr == "") != (code == exitOK) {
				t.Errorf("exit code %d with stderr %q", code, stderr)
			}
		})
	}
}

func TestSimilar(t *testing.T) {
	for text, meant := range map[string]string{"statsu": "status", "stat": "status", "srve": "serve", "trea": "tree", "inspetc": "inspect", "doktor": "doctor"} {
		require.True(t, similar(text, meant), text)
	}
	for text, meant := range map[string]string{"docker": "doctor", "ps": "top", "e": "tree", "images": "inspect", "xyzzy": "tree"} {
		require.False(t, similar(text, meant), text)
	}
}

// The exit code of a program that was run is not that of a wrong command line.
func TestExitCodeOfAnother(t *testing.T) {
	err := exec.CommandContext(t.Context(), "false").Run()
	require.Error(t, err)
	require.Equal(t, exitFailure, exitCode(fmt.Errorf("thin_check: %w", err)))
	require.Equal(t, exitUsage, exitCode(cli.Exit("no such help", 3)))
}

// Who is interrupted reads what had failed until then, and nothing where nothing had.
func TestInterruptedSays(t *testing.T) {
	ctx, interrupt := context.WithCancelCause(t.Context())
	interrupt(context.Canceled)
	why := errors.New("the disk is gone")
	for _, tc := range []struct {
		err  error
		code int
		says string
	}{
		{context.Canceled, exitInterrupted, "interrupted"},
		{fmt.Errorf("%w: the volumes: %w", errNotLooked, context.Canceled), exitInterrupted, "interrupted"},
		{fmt.Errorf("%w: %w", errNotLooked, errors.Join(why, context.Canceled)), exitInterrupted, "interrupted: could not look at everything: the disk is gone\ncontext canceled"},
		{errors.Join(context.Canceled, fmt.Errorf("cure: %w", why)), exitInterrupted, "interrupted: context canceled\ncure: the disk is gone"},
		{why, exitFailure, "the disk is gone"},
		{fmt.Errorf("%w: %w", errRefused, context.Canceled), exitNotLooked, "the repair was refused: context canceled"},
	} {
		code, err := ended(ctx, tc.err)
		require.Equal(t, tc.code, code, tc.says)
		require.EqualError(t, err, tc.says)
	}
}
