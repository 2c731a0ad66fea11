package packaging

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// maxExposure is the most that "systemd-analyze security" may find, in tenths: it has 96 for a service without a sandbox. What is
// left is what the daemon needs, and a mount namespace of its own, which lamina.service says why it cannot have.
const maxExposure = 60

const unit = "lamina.service"

// tUnit writes the unit with a program and pages that exist here, and returns its path and the directory of the pages.
func tUnit(t *testing.T, edit func(string) string) (path, pages string) {
	t.Helper()
	text, err := os.ReadFile(unit)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	mustRun(t, []string{"CGO_ENABLED=0"}, "go", "run", "-trimpath", "./cmd/lamina", "generate", dir) // as make build has built it
	here := strings.ReplaceAll(string(text), "/usr/bin/lamina ", "/bin/true ")
	if here == string(text) {
		t.Fatal("the unit does not start /usr/bin/lamina")
	}
	path = filepath.Join(dir, unit)
	if err := os.WriteFile(path, []byte(edit(here)), 0o600); err != nil {
		t.Fatal(err)
	}
	return path, dir
}

// systemd takes the unit without a complaint, also about the pages that it names.
func TestUnitVerify(t *testing.T) {
	mustNeed(t, "systemd-analyze", "man")
	path, pages := tUnit(t, func(s string) string { return s })
	if said := mustAnalyze(t, pages, path); said != "" {
		t.Error(said)
	}
	// That it would complain.
	path, pages = tUnit(t, func(s string) string {
		return strings.Replace(strings.Replace(s, "KillMode=mixed", "KillMode=gently", 1), "man:lamina-serve(1)", "man:lamina-sever(1)", 1)
	})
	said := mustAnalyze(t, pages, path)
	for _, want := range []string{"gently", "lamina-sever"} {
		if !strings.Contains(said, want) {
			t.Errorf("systemd does not complain of %s: %q", want, said)
		}
	}
}

// mustAnalyze returns what systemd says of a unit. Its status tells less.
func mustAnalyze(t *testing.T, pages, path string) string {
	t.Helper()
	return mustRun(t, []string{"MANPATH=" + pages}, "sh", "-c", `systemd-analyze verify "$0" 2>&1; true`, path)
}

func TestUnitSecurity(t *testing.T) {
	mustNeed(t, "systemd-analyze")
	path, _ := tUnit(t, func(s string) string { return s })
	exposure := func(path string) int {
		said := mustRun(t, nil, "systemd-analyze", "security", "--offline=true", "--no-pager", path)
		_, level, ok := strings.Cut(said, "Overall exposure level for "+unit+": ")
		level, _, _ = strings.Cut(level, " ")
		tenths, err := strconv.Atoi(strings.Replace(level, ".", "", 1))
		if !ok || err != nil {
			t.Fatalf("%v in:\n%s", err, said)
		}
		return tenths
	}
	if got := exposure(path); got > maxExposure {
		t.Errorf("the exposure is %d tenths, more than %d", got, maxExposure)
	}
	bare, _ := tUnit(t, func(s string) string {
		head, _, _ := strings.Cut(s, "NoNewPrivileges=yes")
		return head
	})
	if got := exposure(bare); got <= maxExposure+20 {
		t.Errorf("without a sandbox it is %d tenths", got)
	}
}
