package manual

import (
	"strings"
	"testing"
)

// A link of the table is read where nothing can be followed.
func TestLinksOfSettings(t *testing.T) {
	const page = settingsHead + "\n|---|---|---|\n" +
		"| `a.b` | `[]` | see [the one](one.md#part) and [other](other.md). List [1] (or two) |\n"
	table, err := ParseSettings(page)
	if err != nil {
		t.Fatal(err)
	}
	for what, text := range map[string]string{
		"manual page": SettingsPage(Edition{}, table).Text,
		"sample":      strings.Join(strings.Fields(strings.ReplaceAll(Sample(table), "#", "")), " "),
	} {
		if want := "see the one and other. List [1] (or two)"; !strings.Contains(text, want) {
			t.Errorf("the %s lacks %q:\n%s", what, want, text)
		}
	}
}
