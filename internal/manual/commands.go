package manual

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v3"
)

// Commands returns a page for a command and for each below it that is not hidden: lamina(1), lamina-pool(1), lamina-pool-add(1).
func Commands(e Edition, root *cli.Command) []Page {
	return commands(e, nil, root)
}

func commands(e Edition, above []string, c *cli.Command) []Page {
	path := append(slices.Clone(above), c.Name)
	pages := []Page{command(e, path, c)}
	for _, sub := range shown(c) {
		pages = append(pages, commands(e, path, sub)...)
	}
	return pages
}

// shown are the commands below c that have pages.
func shown(c *cli.Command) (subs []*cli.Command) {
	for _, sub := range c.Commands {
		if !sub.Hidden && sub.Name != "help" {
			subs = append(subs, sub)
		}
	}
	return subs
}

func command(e Edition, path []string, c *cli.Command) Page {
	r := newRoff(e, pageName(path), 1, c.Usage)
	r.section("SYNOPSIS")
	r.synopsis(path, c)
	about, exits := splitExitCodes(c.Description)
	r.section("DESCRIPTION")
	if about == "" {
		about = sentence(c.Usage)
	}
	r.text(about)
	if subs := shown(c); len(subs) > 0 {
		r.section("COMMANDS")
		for _, sub := range subs {
			r.item(reference(pageName(append(slices.Clone(path), sub.Name)), 1))
			r.text(sentence(sub.Usage))
		}
	}
	r.options(c)
	if exits != "" {
		r.section("EXIT STATUS")
		r.text(exits)
	}
	r.seeAlso(path)
	return Page{Name: pageName(path), Section: 1, Text: r.String()}
}

func (r *roff) synopsis(path []string, c *cli.Command) {
	full := bold(strings.Join(path, " "))
	if len(options(c)) > 0 {
		full += ` [\fIOPTION\fR]...`
	}
	if c.ArgsUsage != "" {
		full += " " + italic(c.ArgsUsage)
	}
	if subs := shown(c); len(subs) > 0 {
		if len(path) > 1 { // which does something by itself too
			r.line("%s", full)
			r.line(".br")
		}
		full = fmt.Sprintf(`%s \fICOMMAND\fR [\fIOPTION\fR]...`, bold(strings.Join(path, " ")))
	}
	r.line("%s", full)
}

// options are the flags of a command but --help, which lamina(1) speaks of.
func options(c *cli.Command) (flags []cli.Flag) {
	for _, f := range c.Flags {
		if visible, ok := f.(cli.VisibleFlag); ok && !visible.IsVisible() {
			continue
		}
		if !slices.Contains(f.Names(), "help") {
			flags = append(flags, f)
		}
	}
	return flags
}

func (r *roff) options(c *cli.Command) {
	flags := options(c)
	if len(flags) == 0 {
		return
	}
	r.section("OPTIONS")
	for _, f := range flags {
		documented, ok := f.(cli.DocGenerationFlag)
		if !ok {
			continue
		}
		placeholder, usage := placeholder(documented.GetUsage())
		if documented.TakesValue() && placeholder == "" {
			placeholder = "VALUE"
		}
		r.item(flagNames(f.Names(), placeholder))
		r.line("%s", guarded(escape(sentence(usage))))
		if value := documented.GetValue(); documented.TakesValue() && documented.IsDefaultVisible() && value != "" {
			r.line("The default is %s.", bold(value))
		}
	}
}

func flagNames(names []string, placeholder string) string {
	var tags []string
	for _, name := range names {
		tag := bold("--" + name)
		if len(name) == 1 {
			tag = bold("-" + name)
		}
		if placeholder != "" {
			tag += " " + italic(placeholder)
		}
		tags = append(tags, tag)
	}
	return strings.Join(tags, ", ")
}

// placeholder returns the word between the first two backquotes of a usage, which stands for the value, and the usage without them.
func placeholder(usage string) (name, plain string) {
	before, rest, _ := strings.Cut(usage, "`")
	name, after, ok := strings.Cut(rest, "`")
	if !ok {
		return "", usage
	}
	return name, before + name + after
}

// splitExitCodes takes the paragraphs from the one that lists exit codes on out of a description.
func splitExitCodes(description string) (about, exits string) {
	at := strings.Index(description, "Exit codes")
	if at < 0 {
		return strings.TrimSpace(description), ""
	}
	exits = description[at:]
	if _, list, ok := strings.Cut(exits, ":\n"); ok {
		exits = list
	}
	return strings.TrimSpace(description[:at]), exits
}

func (r *roff) seeAlso(path []string) {
	pages := []string{reference(configPage, 5)}
	if len(path) > 1 {
		pages = append([]string{reference(pageName(path[:len(path)-1]), 1)}, pages...)
	} else {
		r.section("FILES")
		for _, f := range files() {
			r.item(bold(f.path))
			r.line("%s", escape(f.is))
		}
	}
	r.section("SEE ALSO")
	r.line("%s", strings.Join(append(pages, reference("containerd", 8)), ", "))
	r.line(".PP")
	r.line("%s", escape("Each command explains itself with --help. How to operate Lamina is in /usr/share/doc/lamina/operating.md."))
}

// files are those that an operator meets.
func files() []struct{ path, is string } {
	return []struct{ path, is string }{
		{"/etc/lamina/config.toml", "The configuration."},
		{"/run/lamina/lamina.sock", "The socket that containerd asks."},
		{"/run/lamina/admin.sock", "The socket that these commands ask."},
		{"/var/lib/lamina", "The store, lamina.db, and what the backends keep: all of it belongs together."},
	}
}

func pageName(path []string) string { return strings.Join(path, "-") }

func reference(name string, section int) string { return fmt.Sprintf("%s(%d)", bold(name), section) }

// sentence is a usage, which has neither capital nor full stop, as a sentence.
func sentence(usage string) string {
	if usage == "" {
		return ""
	}
	if !strings.HasSuffix(usage, ".") {
		usage += "."
	}
	return strings.ToUpper(usage[:1]) + usage[1:]
}
