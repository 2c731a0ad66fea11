package manual

import (
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v3"
)

// What a command says of itself is shown as it stands, whatever it means to roff.
func TestCommandsRoff(t *testing.T) {
	c := &cli.Command{
		Name: "do", Usage: "do something", ArgsUsage: "FILE",
		Description: ".hidden is a file, 'x' is \\ too\n\nA list:\n   1  one\n\nExit codes:\n   0  done",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "into", Aliases: []string{"i"}, Usage: "write to `DIR`", Value: "/d-d"},
			&cli.BoolFlag{Name: "secret", Hidden: true},
		},
		Commands: []*cli.Command{{Name: "more", Usage: "do more"}, {Name: "generate", Hidden: true}},
	}
	pages := Commands(Edition{Version: "1.2", Date: time.Unix(0, 0)}, &cli.Command{Name: "top", Usage: "a top", Commands: []*cli.Command{c}})
	if len(pages) != 3 || pages[1].File() != "top-do.1" {
		t.Fatalf("got %+v", pages)
	}
	for _, want := range []string{
		".TH \"TOP\\-DO\" 1 \"1970\\-01\\-01\" \"lamina 1.2\" Lamina\n",
		"top\\-do \\- do something\n",
		"\\fBtop do\\fR [\\fIOPTION\\fR]... \\fIFILE\\fR\n.br\n\\fBtop do\\fR \\fICOMMAND\\fR",
		"\n\\&.hidden is a file, \\(aqx\\(aq is \\e too\n.PP\nA list:\n.nf\n   1  one\n.fi\n",
		".TP\n\\fB\\-\\-into\\fR \\fIDIR\\fR, \\fB\\-i\\fR \\fIDIR\\fR\nWrite to DIR.\nThe default is \\fB\\(dq/d\\-d\\(dq\\fR.\n",
		".SH EXIT STATUS\n.nf\n   0  done\n.fi\n",
		"\\fBtop\\-do\\-more\\fR(1)",
	} {
		if !strings.Contains(pages[1].Text, want) {
			t.Errorf("it lacks %q:\n%s", want, pages[1].Text)
		}
	}
	for _, not := range []string{"secret", "generate"} {
		if strings.Contains(pages[1].Text, not) {
			t.Errorf("it has %q", not)
		}
	}
}
