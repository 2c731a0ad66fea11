package manual

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// configPage is the name of the page about the configuration, as containerd names its own.
const configPage = "lamina-config.toml"

// Setting is a key of the configuration.
type Setting struct {
	Key     string // with the tables that it is in: "union.aufs.xino"
	Default string // as it stands in a file; "" where the key has none
	Told    string // the same with what it depends on, with code spans of Markdown
	Meaning string // with code spans of Markdown
}

// head of the table of settings.
const settingsHead = "| key | default | meaning |"

// link is one of Markdown. What is made of the table has no place for where it leads.
var link = regexp.MustCompile(`\[([^]]+)\]\([^)]+\)`)

// ErrSettings is returned when the table of settings and the program do not say the same.
var ErrSettings = errors.New("the table of settings is not that of the program")

// ParseSettings reads the table of settings of a page in Markdown.
func ParseSettings(page string) ([]Setting, error) {
	_, table, ok := strings.Cut(page, settingsHead+"\n")
	if !ok {
		return nil, fmt.Errorf("%w: there is no line %q", ErrSettings, settingsHead)
	}
	var settings []Setting
	for line := range strings.Lines(table) {
		if !strings.HasPrefix(line, "|") {
			break
		}
		cells := strings.SplitN(strings.Trim(strings.TrimSpace(line), "|"), "|", 3)
		if len(cells) != 3 {
			return nil, fmt.Errorf("%w: %q has not three cells", ErrSettings, line)
		}
		s := Setting{Key: code(cells[0]), Default: code(cells[1]), Told: strings.TrimSpace(cells[1]), Meaning: link.ReplaceAllString(strings.TrimSpace(cells[2]), "$1")}
		if s.Key == "" { // the line below the head
			continue
		}
		settings = append(settings, s)
	}
	return settings, nil
}

// code returns the last code span of a cell, or nothing.
func code(cell string) string {
	spans := strings.Split(cell, "`")
	if len(spans) < 3 {
		return ""
	}
	return spans[len(spans)-2]
}

// Check says in what the table differs from the settings of the program: keys are all that it takes, in which NAME stands for any
// name, and defaults is a file with the default of each that has one.
func Check(table []Setting, keys []string, defaults []byte) error {
	var tree map[string]any
	if err := toml.Unmarshal(defaults, &tree); err != nil {
		return err
	}
	var errs []error
	told := make(map[string]Setting)
	for _, s := range table {
		told[s.Key] = s
		if !slices.Contains(keys, s.Key) {
			errs = append(errs, fmt.Errorf("%w: no such key: %s", ErrSettings, s.Key))
		}
	}
	for _, key := range keys {
		s, ok := told[key]
		if !ok {
			errs = append(errs, fmt.Errorf("%w: it lacks %s", ErrSettings, key))
			continue
		}
		if err := s.check(tree); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// check compares the default. None is also that of a text which is empty.
func (s Setting) check(tree map[string]any) error {
	has := lookUp(tree, strings.Split(s.Key, "."))
	said := ""
	if has != nil && has != "" {
		text, err := toml.Marshal(map[string]any{"v": has})
		if err != nil {
			return err
		}
		said = string(text)
	}
	var told, is map[string]any
	if err := toml.Unmarshal([]byte(said), &is); err != nil {
		return err
	}
	if s.Default != "" {
		if err := toml.Unmarshal([]byte("v = "+s.Default), &told); err != nil {
			return fmt.Errorf("%w: the default of %s: %w", ErrSettings, s.Key, err)
		}
	}
	if fmt.Sprint(told["v"]) != fmt.Sprint(is["v"]) {
		return fmt.Errorf("%w: the default of %s is %v, not %v", ErrSettings, s.Key, is["v"], told["v"])
	}
	return nil
}

// lookUp returns the value of a key, that of any name for NAME, or nil.
func lookUp(tree map[string]any, path []string) any {
	name := path[0]
	if name == anyName {
		for _, name = range slices.Sorted(maps.Keys(tree)) {
			break
		}
	}
	if len(path) == 1 {
		return tree[name]
	}
	below, ok := tree[name].(map[string]any)
	if !ok {
		return nil
	}
	return lookUp(below, path[1:])
}

// anyName stands in a key for one that the user gives.
const anyName = "NAME"

// SettingsPage returns the page about the configuration.
func SettingsPage(e Edition, table []Setting) Page {
	r := newRoff(e, configPage, 5, "the configuration of lamina")
	r.section("SYNOPSIS")
	r.line("%s", bold("/etc/lamina/config.toml"))
	r.section("DESCRIPTION")
	r.text("The file is TOML. Every key has a default, so it may be empty or missing. An unknown key, or a value that cannot be, is an error, and the daemon does not start.\n\n" +
		"A key of the table below with dots is one in a table of the file: thin.fs is fs in [thin]. Text stands in quotation marks. Sizes are text with a unit.\n\n" +
		"\"lamina config\" prints what is in effect.")
	r.section("SETTINGS")
	for _, s := range table {
		r.item(bold(s.Key))
		r.line("%s", marked(s.Meaning+stop(s.Meaning)))
		if s.Default != "" {
			r.line("%s", marked("The default is "+s.Told+"."))
		}
	}
	r.section("SEE ALSO")
	r.line("%s, %s, %s", reference("lamina", 1), reference("lamina-serve", 1), reference("lamina-config", 1))
	r.line(".PP")
	r.line("%s", escape("Words in quotation marks are sections of the pages in /usr/share/doc/lamina."))
	return Page{Name: configPage, Section: 5, Text: r.String()}
}

// stop is what ends a sentence, if nothing does.
func stop(s string) string {
	if strings.HasSuffix(s, ".") {
		return ""
	}
	return "."
}
