package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v3"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/admin"
	"github.com/lamina-snapshotter/lamina/doctor"
	"github.com/lamina-snapshotter/lamina/internal/term"
	"github.com/lamina-snapshotter/lamina/metadata"
)

// The exit codes of doctor beside those of all commands. They too stand in the help and in docs/operating.md.
const (
	exitFindings  = 1
	exitNotLooked = 2
)

const doctorCodes = `Exit codes of doctor:
   0  nothing is wrong
   1  there are findings beside notes
   2  something could not be looked at, or not be cured, and stderr says what; or the command line is wrong
   3  the configuration is wrong
 130  interrupted`

var (
	// errFindings is returned when there are findings.
	errFindings = errors.New("there are findings")

	// errNotLooked is returned when something could not be looked at.
	errNotLooked = errors.New("could not look at everything")

	// errRefused is returned for a repair that has not begun.
	errRefused = errors.New("the repair was refused")
)

func newDoctor() *cli.Command {
	return &cli.Command{
		Name:  "doctor",
		Usage: "hold the store against the kernel and the disk",
		Description: "It says what is not as it should be, what that means, and what to do, one line each. It changes nothing, " +
			"and may be run beside the daemon. With --repair, and the daemon stopped, it cures what it can: it announces each " +
			"cure and asks before it begins.\n\n" + doctorCodes,
		Flags: append(settingsFlags(),
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "print findings as `FORMAT`: text, or json, an object a line", Value: "text"},
			&cli.BoolFlag{Name: "usage", Usage: "print instead what each volume has of the pool, alone and shared"},
			&cli.BoolFlag{Name: "repair", Usage: "cure what is found; the daemon must be stopped"},
			&cli.BoolFlag{Name: "remove-lost", Usage: "with --repair: remove snapshots whose content is lost, and those that are lost with them"},
			&cli.BoolFlag{Name: "yes", Usage: "with --repair: answer each question with yes"},
			&cli.BoolFlag{Name: "dry-run", Usage: "with --repair: say what would be done, and do nothing"},
		),
		Action: func(ctx context.Context, c *cli.Command) error {
			d, err := newDoctorRun(c)
			if err != nil {
				return err
			}
			ctx, s, err := loadLogged(ctx, c)
			if err != nil {
				return err
			}
			d.settings = s
			return d.run(ctx)
		},
	}
}

// A doctorRun is one run of the command.
type doctorRun struct {
	settings settings
	out      io.Writer
	err      io.Writer
	in       io.Reader
	json     bool

	repair, removeLost, yes, dryRun, usage bool

	mend func(context.Context, lamina.Config, doctor.Repair) error

	progress *term.Progress
	count    int // of findings that are faults
}

func newDoctorRun(c *cli.Command) (*doctorRun, error) {
	d := &doctorRun{
		out: c.Root().Writer, err: c.Root().ErrWriter, in: c.Root().Reader, json: c.String("output") == "json",
		repair: c.Bool("repair"), removeLost: c.Bool("remove-lost"), yes: c.Bool("yes"), dryRun: c.Bool("dry-run"),
		usage: c.Bool("usage"), mend: lamina.Repair,
	}
	if err := oneOf("output", c.String("output"), "text", "json"); err != nil {
		return nil, fmt.Errorf("%w: %w", errUsage, err)
	}
	if !d.repair && (d.removeLost || d.yes || d.dryRun) {
		return nil, fmt.Errorf("%w: --remove-lost, --yes and --dry-run are for --repair", errUsage)
	}
	if d.repair && d.usage {
		return nil, fmt.Errorf("%w: --usage only looks, without --repair", errUsage)
	}
	return d, nil
}

// doing is what it says while it takes its time.
func (d *doctorRun) doing() string {
	switch {
	case d.usage:
		return "measuring volumes"
	case d.repair:
		return "repairing"
	}
	return "examining"
}

func (d *doctorRun) run(ctx context.Context) error {
	d.progress = newProgress(ctx, d.err, d.json, d.doing())
	return during(d.progress, (*term.Progress).Elapsed, func() error { return d.work(ctx) })
}

func (d *doctorRun) work(ctx context.Context) error {
	if d.usage {
		return d.printUsage(ctx)
	}
	var failed error
	if d.repair {
		failed = d.cure(ctx)
		if errors.Is(failed, errRefused) {
			return failed
		}
		if err := ctx.Err(); err != nil { // a cure that had begun may have come to its end all the same
			return errors.Join(failed, err)
		}
	}
	if err := d.examine(ctx); err != nil {
		failed = errors.Join(failed, fmt.Errorf("%w: %w", errNotLooked, err))
	}
	if failed != nil {
		return failed
	}
	if d.count > 0 {
		return fmt.Errorf("%w: %d", errFindings, d.count)
	}
	if d.json {
		return nil
	}
	return d.say(d.out, "nothing is wrong\n")
}

// examine prints the findings.
func (d *doctorRun) examine(ctx context.Context) error {
	var failed error
	say := func(f doctor.Finding) {
		if !f.Note {
			d.count++
		}
		failed = errors.Join(failed, d.print(f))
	}
	return errors.Join(look(ctx, d.settings, lamina.Examine, examinePath, say), failed)
}

// printUsage prints what each volume has of the pool.
func (d *doctorRun) printUsage(ctx context.Context) error {
	var failed error
	volumes := 0
	say := func(u doctor.Usage) {
		volumes++
		failed = errors.Join(failed, d.print(u))
	}
	if err := errors.Join(look(ctx, d.settings, lamina.Usage, usagePath, say), failed); err != nil {
		return fmt.Errorf("%w: %w", errNotLooked, err)
	}
	if volumes == 0 && !d.json {
		return d.say(d.out, "there are no volumes\n")
	}
	return nil
}

// look calls say with what there is: by a look of its own, or, if a process has the root, by that of the daemon.
func look[T any](ctx context.Context, s settings, own func(context.Context, lamina.Config, func(T)) error, path string, say func(T)) error {
	err := own(ctx, s.Config, say)
	if !errors.Is(err, metadata.ErrLocked) {
		return err
	}
	return s.askLocked(err, func(c *admin.Client) error { return askDoctor(ctx, c, path, say) })
}

// print prints a line. In it may be what a container chose: keys, names of files and of processes.
func (d *doctorRun) print(what any) error {
	if d.json {
		return term.JSON(d.out, what)
	}
	return d.say(d.out, term.Line(fmt.Sprint(what))+"\n")
}

// say prints where the progress may stand.
func (d *doctorRun) say(out io.Writer, text string) error {
	return d.progress.Aside(func() error {
		_, err := io.WriteString(out, text)
		return err
	})
}

// cure repairs. What it does is said before it is done: with the findings, or on stderr if they are JSON.
func (d *doctorRun) cure(ctx context.Context) error {
	if !isTerminal(d.in) && !d.yes && !d.dryRun {
		return fmt.Errorf("%w: --repair asks, and there is no terminal: add --yes or --dry-run", errRefused)
	}
	talk, answers := d.out, bufio.NewReader(d.in)
	if d.json {
		talk = d.err
	}
	r := doctor.Repair{
		DryRun: d.dryRun, RemoveLost: d.removeLost,
		Say: func(text string) { _ = d.say(talk, "repair: "+term.Line(text)+"\n") },
		Ask: func(question string) (bool, error) { return d.ask(ctx, talk, answers, question) },
	}
	err := d.mend(ctx, d.settings.Config, r)
	if errors.Is(err, metadata.ErrLocked) {
		return fmt.Errorf("%w: stop the daemon before a repair: %w", errRefused, err)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errNotLooked, err)
	}
	return nil
}

// ask asks, unless the answer is known.
func (d *doctorRun) ask(ctx context.Context, out io.Writer, in *bufio.Reader, question string) (bool, error) {
	if d.yes || ctx.Err() != nil {
		return d.yes, ctx.Err()
	}
	answer := ""
	err := d.progress.Aside(func() (err error) {
		if _, err = fmt.Fprintf(out, "%s [y/N] ", term.Line(question)); err != nil {
			return err
		}
		answer, err = typed(ctx, in)
		if ctx.Err() != nil {
			_, _ = io.WriteString(out, "\n")
		}
		return err
	})
	return strings.EqualFold(answer, "y") || strings.EqualFold(answer, "yes"), err
}

// typed returns the next line that somebody types, or the error of ctx if that ends first: a read cannot be interrupted, and is left to
// the end of the process.
func typed(ctx context.Context, in *bufio.Reader) (string, error) {
	type line struct {
		text string
		err  error
	}
	lines := make(chan line, 1)
	go func() {
		text, err := in.ReadString('\n')
		if errors.Is(err, io.EOF) {
			err = nil
		}
		lines <- line{strings.TrimSpace(text), err}
	}()
	select {
	case l := <-lines:
		return l.text, l.err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// isTerminal reports whether somebody is at the other end of a reader or writer.
func isTerminal(end any) bool {
	f, ok := end.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
