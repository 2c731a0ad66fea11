package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/urfave/cli/v3"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/internal/term"
)

func newFeatures() *cli.Command {
	return &cli.Command{
		Name:  "features",
		Usage: "print what each driver can do on this host",
		Description: "It tries each thing, in the file system of the root or of the directory that the root will be made in, and says " +
			"for each no why. It needs neither a daemon nor a config file, leaves nothing behind, and ends within a minute. " +
			"Without root some things cannot be tried, which is said.\n\n" + exitCodes,
		Flags: append(settingsFlags(),
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "print features as `FORMAT`: text, or json, an object a line", Value: "text"}),
		Action: func(ctx context.Context, c *cli.Command) error {
			if err := oneOf("output", c.String("output"), "text", "json"); err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			ctx, s, err := loadLogged(ctx, c)
			if err != nil {
				return err
			}
			found, err := lamina.Features(ctx, s.Config)
			if err != nil {
				return err
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			if c.String("output") == "json" {
				return encodeFeatures(c.Root().Writer, found)
			}
			return printFeatures(c.Root().Writer, found)
		},
	}
}

// A featureLine is a Feature as it is printed. Its names and the words of Here stay as they are; the texts may change.
type featureLine struct {
	Driver string `json:"driver"`
	Name   string `json:"feature"`
	Here   string `json:"here"` // "yes", "no", or "unknown" if it could not be tried
	Detail string `json:"detail,omitempty"`
	Reason string `json:"reason,omitempty"` // of a no, or an unknown
}

func newFeatureLine(f lamina.Feature) featureLine {
	l := featureLine{Driver: f.Driver, Name: f.Name, Here: "yes", Detail: f.Detail}
	if f.Err != nil {
		l.Here, l.Detail, l.Reason = "no", "", fmt.Sprint(f.Err)
	}
	if errors.Is(f.Err, lamina.ErrUntried) {
		l.Here = "unknown"
	}
	return l
}

func encodeFeatures(w io.Writer, found []lamina.Feature) error {
	enc := json.NewEncoder(w)
	for _, f := range found {
		if err := enc.Encode(newFeatureLine(f)); err != nil {
			return err
		}
	}
	return nil
}

func printFeatures(w io.Writer, found []lamina.Feature) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "DRIVER\tFEATURE\tHERE\tWHY, OR HOW") // Flush returns the error
	for _, f := range found {
		l := newFeatureLine(f)
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", l.Driver, l.Name, l.Here, term.Line(l.Detail+l.Reason))
	}
	return table.Flush()
}
