package packaging

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestVersion builds versions of a repository as it grows: Debian has each later than the one before.
func TestVersion(t *testing.T) {
	mustNeed(t, "git", "dpkg", "bash")
	script, err := filepath.Abs("build")
	if err != nil {
		t.Fatal(err)
	}
	dir, clock := t.TempDir(), time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC)
	run := func(argv ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "HOME="+dir, "GIT_CONFIG_NOSYSTEM=1", "GIT_COMMITTER_DATE="+clock.Format(time.RFC3339),
			"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%q: %v\n%s", argv, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	commit := func() {
		clock = clock.Add(time.Hour)
		run("git", "commit", "--quiet", "--all", "--allow-empty", "--message", "next")
	}
	run("git", "init", "--quiet")
	mustWrite(t, filepath.Join(dir, "file"), nil)
	run("git", "add", "file")
	tag := func(name string) func() { return func() { commit(); run("git", "tag", name) } }
	dirty := func() { mustWrite(t, filepath.Join(dir, "file"), []byte(clock.String())) }
	ten := func() {
		for range 9 { // +10 is later than +2
			commit()
		}
	}
	last := "0"
	for _, step := range []struct {
		do   func()
		want string // the begin
	}{
		{commit, "0.0~git20260102.0404."},
		{commit, "0.0~git20260102.0504."},
		{tag("v0.1-alpha"), "0.1~alpha"},
		{tag("v0.1-rc1"), "0.1~rc1"},
		{dirty, "0.1~rc1+0+dirty"},
		{commit, "0.1~rc1+1+g"},
		{tag("v0.1-rc2"), "0.1~rc2"},
		{tag("v0.1-rc10"), "0.1~rc10"},
		{tag("v0.1"), "0.1"},
		{dirty, "0.1+0+dirty"},
		{commit, "0.1+1+g"},
		{dirty, "0.1+1+g"},
		{commit, "0.1+2+g"},
		{ten, "0.1+11+g"},
		{tag("v0.1.1-rc.1"), "0.1.1~rc.1"},
		{tag("v0.1.1"), "0.1.1"},
		{tag("v0.2"), "0.2"},
		{tag("v0.10"), "0.10"},
	} {
		step.do()
		version := run("bash", "-c", `source <(sed -n '/^version() {$/,/^}$/p' "$0") && version`, script)
		if !strings.HasPrefix(version, step.want) {
			t.Errorf("%s does not begin with %s", version, step.want)
		}
		if err := exec.CommandContext(t.Context(), "dpkg", "--compare-versions", version, "gt", last).Run(); err != nil {
			t.Errorf("%s is not later than %s: %v", version, last, err)
		}
		last = version
	}
}
