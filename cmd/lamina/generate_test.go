package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/urfave/cli/v3"
)

const settingsPage = "../../docs/configuration.md"

// tGenerate returns the directory that generate has written to.
func tGenerate(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if code, _, stderr := tRun(t, "generate", "--settings", settingsPage, dir); code != exitOK {
		t.Fatal(stderr)
	}
	return dir
}

// Each command has a page that names its flags and the commands below it.
func TestGeneratePages(t *testing.T) {
	dir := tGenerate(t)
	pages := map[string]bool{}
	var look func(name string, c *cli.Command)
	look = func(name string, c *cli.Command) {
		file := filepath.Join(dir, "man1", name+".1")
		pages[file] = true
		page, err := os.ReadFile(file)
		if err != nil {
			t.Error(err)
			return
		}
		text := strings.ReplaceAll(string(page), `\-`, "-")
		for _, f := range c.Flags {
			for _, flag := range f.Names() {
				if flag != "help" && flag != "h" && !strings.Contains(text, `-`+flag+`\fR`) {
					t.Errorf("%s does not speak of -%s:\n%s", name, flag, page)
				}
			}
		}
		for _, sub := range c.Commands {
			if sub.Hidden || sub.Name == "help" {
				continue
			}
			if !strings.Contains(text, `\fB`+name+"-"+sub.Name+`\fR(1)`) {
				t.Errorf("%s does not speak of %s", name, sub.Name)
			}
			look(name+"-"+sub.Name, sub)
		}
	}
	root := newRoot(io.Discard, io.Discard)
	if err := root.Run(t.Context(), []string{"lamina", "version"}); err != nil { // which adds the command for completions
		t.Fatal(err)
	}
	look("lamina", root)
	written, err := filepath.Glob(filepath.Join(dir, "man1", "*"))
	if err != nil || len(written) != len(pages) {
		t.Errorf("pages %q, %v; want %d", written, err, len(pages))
	}
}

// man shows each page without a warning.
func TestGenerateMan(t *testing.T) {
	if _, err := exec.LookPath("man"); err != nil {
		if os.Getenv("LAMINA_TEST_ROOT") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	pages, err := filepath.Glob(filepath.Join(tGenerate(t), "man?", "*"))
	if err != nil || len(pages) == 0 {
		t.Fatal(pages, err)
	}
	for _, page := range pages {
		// As Debian's lintian has it. One page is all that man gives a status for.
		cmd := exec.CommandContext(t.Context(), "man", "--warnings", "--encoding=UTF-8", "--local-file", "-Tutf8", "--ditroff", page)
		cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "MANROFFSEQ=", "MANWIDTH=80")
		var warnings bytes.Buffer
		cmd.Stderr = &warnings
		if err := cmd.Run(); err != nil || warnings.Len() > 0 {
			t.Errorf("%s: %v: %s", filepath.Base(page), err, &warnings)
		}
	}
}

// The sample has the effect of an empty file, and so it has when every key counts.
func TestGenerateSample(t *testing.T) {
	sample, err := os.ReadFile(filepath.Join(tGenerate(t), "config.toml"))
	if err != nil {
		t.Fatal(err)
	}
	unmarked := regexp.MustCompile(`(?m)^#([^ ])`).ReplaceAllString(string(sample), "$1")
	for _, text := range []string{string(sample), unmarked} {
		got, err := readSettings(tFile(t, text), true)
		if err != nil {
			t.Fatalf("%v in:\n%s", err, text)
		}
		// A list that is empty is as good as none.
		want := defaultSettings()
		want.Admin.Address, got.Admin.Address = want.adminAddress(), got.adminAddress()
		if len(got.Thin.Devices) == 0 {
			got.Thin.Devices, want.Thin.Devices = nil, nil
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	}
	keys := settingKeys(reflect.TypeFor[settings](), "")
	if n := strings.Count(unmarked, "\n") - strings.Count(string(sample), "\n"); n != 0 || len(keys) < 30 {
		t.Errorf("%d keys", len(keys))
	}
	for _, key := range keys {
		if name := key[strings.LastIndex(key, ".")+1:]; !strings.Contains(string(sample), "\n#"+name+" = ") {
			t.Errorf("the sample lacks %s", key)
		}
	}
}

// A page that has not the program's settings is refused: an unknown key, a missing one, another default.
func TestGenerateRefuses(t *testing.T) {
	page, err := os.ReadFile(settingsPage)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ old, is, says string }{
		{"| `log.level` |", "| `log.lever` |", "no such key: log.lever"},
		{"| `log.level` |", "| `log.lever` |", "it lacks log.level"},
		{"| `log.level` | `\"info\"`", "| `log.level` | `\"debug\"`", "the default of log.level is info, not debug"},
		{"| `pprof` | none", "| `pprof` | `\"/x\"`", "the default of pprof is <nil>, not /x"},
		{"| key | default | meaning |", "| key | meaning |", "there is no line"},
	} {
		file := filepath.Join(t.TempDir(), "page")
		text := strings.Replace(string(page), tc.old, tc.is, 1)
		if text == string(page) {
			t.Fatalf("the page has no %q", tc.old)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		code, _, stderr := tRun(t, "generate", "--settings", file, t.TempDir())
		if code != exitFailure || !strings.Contains(stderr, tc.says) {
			t.Errorf("%s: exit code %d, %s", tc.is, code, stderr)
		}
	}
}

// The date is that of the source, whenever and wherever it is built.
func TestGenerateDate(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "86400")
	page, err := os.ReadFile(filepath.Join(tGenerate(t), "man1", "lamina.1"))
	if err != nil || !strings.Contains(string(page), `"1970\-01\-02"`) {
		t.Errorf("%v:\n%.200s", err, page)
	}
}
