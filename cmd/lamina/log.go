package main

import (
	"context"
	"fmt"
	"io"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v3"
)

// loadLogged returns the settings of a command, and ctx with the logger that they ask for.
func loadLogged(ctx context.Context, c *cli.Command) (context.Context, settings, error) {
	s, err := loadSettings(c)
	if err != nil {
		return nil, s, err
	}
	logger, err := newLogger(c.Root().ErrWriter, s.Log)
	if err != nil {
		return nil, s, err
	}
	return log.WithLogger(ctx, logger), s, nil
}

// newLogger returns the daemon's logger. It travels in contexts (log.WithLogger), so that nothing global is set and a
// test can read what one daemon wrote.
func newLogger(w io.Writer, s logSettings) (*log.Entry, error) {
	level, err := logrus.ParseLevel(s.Level)
	if err != nil {
		return nil, fmt.Errorf("log.level: %w", err)
	}
	logger := logrus.New()
	logger.SetOutput(w)
	logger.SetLevel(level)
	if s.Format == "json" {
		logger.SetFormatter(&logrus.JSONFormatter{TimestampFormat: log.RFC3339NanoFixed})
	} else {
		logger.SetFormatter(&logrus.TextFormatter{TimestampFormat: log.RFC3339NanoFixed, FullTimestamp: true})
	}
	return logrus.NewEntry(logger), nil
}
