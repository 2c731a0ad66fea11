package lamina

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The table in docs/configuration.md has the features that the program tries, and no others, each for the drivers that it tries it for.
func TestManualFeatures(t *testing.T) {
	manual, err := os.ReadFile("docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	var drivers, names []string
	said := map[[2]string]bool{}
	for line := range strings.Lines(string(manual)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		switch {
		case cells[0] == "`lamina features`":
			drivers = cells[1:]
		case len(drivers) > 0 && strings.HasPrefix(line, "| ") && len(cells) == len(drivers)+1:
			names = append(names, cells[0])
			for i, driver := range drivers {
				said[[2]string{driver, cells[0]}] = cells[i+1] != "–"
			}
		}
	}
	c := DefaultConfig()
	var tried []string
	has := map[[2]string]bool{}
	for _, p := range slices.Concat(c.unionProbes(), c.thinProbes()) {
		if !slices.Contains(tried, p.Name) {
			tried = append(tried, p.Name)
		}
		if !slices.Contains(drivers, p.Driver) {
			t.Errorf("docs/configuration.md has no column %q", p.Driver)
		}
		has[[2]string{p.Driver, p.Name}] = true
	}
	if !slices.Equal(names, tried) {
		t.Errorf("docs/configuration.md has the rows\n%q, the program\n%q", names, tried)
	}
	for key, yes := range said {
		if yes != has[key] {
			t.Errorf("docs/configuration.md says of %v %t, the program %t", key, yes, has[key])
		}
	}
}

func TestFeatures(t *testing.T) {
	needRoot(t)
	c := tConfig(t)
	found, err := Features(t.Context(), c)
	if err != nil || len(found) != len(c.unionProbes())+len(c.thinProbes()) {
		t.Fatalf("%d features, %v", len(found), err)
	}
	for _, f := range found {
		if f.Driver == "overlay" && f.Name == "mount" && f.Err != nil {
			t.Errorf("overlay: %v", f.Err)
		}
		if errors.Is(f.Err, ErrUntried) {
			t.Errorf("root cannot try %s %s: %v", f.Driver, f.Name, f.Err)
		}
	}
	if _, err := os.Stat(filepath.Dir(c.Root)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the root was made: %v", err)
	}
	if _, err := Features(t.Context(), Config{Root: "x"}); err == nil {
		t.Error("a wrong configuration is no error")
	}
}

// Each probe has a name of its own.
func TestProbesAreDistinct(t *testing.T) {
	seen := map[[2]string]bool{}
	c := DefaultConfig()
	for _, p := range slices.Concat(c.unionProbes(), c.thinProbes()) {
		key := [2]string{p.Driver, p.Name}
		if seen[key] || p.Driver == "" || p.Name == "" || p.Try == nil {
			t.Errorf("probe %v", key)
		}
		seen[key] = true
	}
}
