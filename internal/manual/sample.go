package manual

import (
	"fmt"
	"strings"
)

const sampleHead = `# The configuration of lamina: see lamina-config.toml(5). Each key stands here with its default, as a comment.
# "lamina config" prints what is in effect. Words in quotation marks are sections of the pages in /usr/share/doc/lamina.
# A change needs "systemctl restart lamina", which containers do not notice.
`

// sampleName is that of a snapshotter without a configuration.
const sampleName = "lamina"

// sampleWidth is how long lines of text are.
const sampleWidth = 100

// Sample returns a configuration with all keys as comments. The heads of tables are none, so that a key of which somebody removes
// the mark is in its table; except for those that would mean something by themselves, which a name of the user's is in.
func Sample(table []Setting) string {
	var b strings.Builder
	b.WriteString(sampleHead)
	at := ""
	for _, s := range inTables(table) {
		in, key := split(strings.ReplaceAll(s.Key, anyName, sampleName))
		if in != at {
			mark := ""
			if strings.Contains(s.Key, "."+anyName) {
				mark = "#"
			}
			fmt.Fprintf(&b, "\n%s[%s]\n", mark, in)
			at = in
		}
		fmt.Fprintf(&b, "\n%s#%s = %s\n", wrapped(strings.ReplaceAll(s.Meaning, "`", "")), key, sampleValue(s))
	}
	return b.String()
}

// inTables orders settings so that each table's stand together, those without one first, those of a name of the user's last: after
// the mark of such a key is removed without that of the head, it is in a table that does not have it, which is an error.
func inTables(table []Setting) (ordered []Setting) {
	var tables []string
	of := make(map[string][]Setting)
	for _, s := range table {
		in, _ := split(s.Key)
		if _, ok := of[in]; !ok {
			tables = append(tables, in)
		}
		of[in] = append(of[in], s)
	}
	for _, pass := range []func(string) bool{
		func(in string) bool { return in == "" },
		func(in string) bool { return in != "" && !strings.Contains(in, "."+anyName) },
		func(in string) bool { return strings.Contains(in, "."+anyName) },
	} {
		for _, in := range tables {
			if pass(in) {
				ordered = append(ordered, of[in]...)
			}
		}
	}
	return ordered
}

func split(key string) (table, name string) {
	at := strings.LastIndex(key, ".")
	return key[:max(at, 0)], key[at+1:]
}

func sampleValue(s Setting) string {
	if s.Default == "" {
		return `""`
	}
	return s.Default
}

// wrapped is text as comments.
func wrapped(text string) string {
	var b strings.Builder
	line := "#"
	for word := range strings.FieldsSeq(text) {
		if len(line)+1+len(word) > sampleWidth {
			b.WriteString(line + "\n")
			line = "#"
		}
		line += " " + word
	}
	return b.String() + line + "\n"
}
