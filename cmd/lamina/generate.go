package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/lamina-snapshotter/lamina/internal/manual"
)

// newGenerate is for who packages Lamina.
func newGenerate() *cli.Command {
	var dir string
	return &cli.Command{
		Name:      "generate",
		Usage:     "write the manual pages and a sample configuration",
		Hidden:    true,
		ArgsUsage: "DIR",
		Description: "DIR gets man1, man5 and config.toml. With SOURCE_DATE_EPOCH in the environment the pages have that date, and are the same each time.\n\n" +
			exitCodes,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "settings", Usage: "the `PAGE` with the table of settings", Value: "docs/configuration.md"},
		},
		Arguments: []cli.Argument{&cli.StringArg{Name: "dir", Destination: &dir}},
		Action: func(_ context.Context, c *cli.Command) error {
			if dir == "" {
				return fmt.Errorf("%w: %s needs a directory", errUsage, c.FullName())
			}
			page, err := os.ReadFile(c.String("settings"))
			if err != nil {
				return err
			}
			date, err := sourceDate(os.Getenv("SOURCE_DATE_EPOCH"))
			if err != nil {
				return err
			}
			return generate(dir, c.Root(), string(page), manual.Edition{Version: buildVersion(), Date: date})
		},
	}
}

// generate refuses a table of settings that is not that of the program.
func generate(dir string, root *cli.Command, page string, e manual.Edition) error {
	table, err := manual.ParseSettings(page)
	if err != nil {
		return err
	}
	var defaults bytes.Buffer
	effective := defaultSettings()
	effective.Admin.Address = effective.adminAddress()
	if err := writeTOML(&defaults, effective); err != nil {
		return err
	}
	if err := manual.Check(table, settingKeys(reflect.TypeFor[settings](), ""), defaults.Bytes()); err != nil {
		return err
	}
	for _, p := range append(manual.Commands(e, root), manual.SettingsPage(e, table)) {
		if err := writeFile(filepath.Join(dir, fmt.Sprintf("man%d", p.Section), p.File()), p.Text); err != nil {
			return err
		}
	}
	return writeFile(filepath.Join(dir, "config.toml"), manual.Sample(table))
}

func writeFile(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(text), 0o644)
}

// settingKeys are those that a file may have, in which NAME stands for any name.
func settingKeys(t reflect.Type, in string) (keys []string) {
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("toml"), ",")
		key := in + name
		switch {
		case f.Anonymous:
			keys = append(keys, settingKeys(f.Type, in)...)
		case name == "-":
		case f.Type.Kind() == reflect.Struct:
			keys = append(keys, settingKeys(f.Type, key+".")...)
		case f.Type.Kind() == reflect.Map:
			keys = append(keys, settingKeys(f.Type.Elem(), key+".NAME.")...)
		default:
			keys = append(keys, key)
		}
	}
	return keys
}

// sourceDate is the date of what is built: https://reproducible-builds.org/specs/source-date-epoch.
func sourceDate(epoch string) (time.Time, error) {
	if epoch == "" {
		return time.Now(), nil
	}
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
	}
	return time.Unix(seconds, 0), nil
}
