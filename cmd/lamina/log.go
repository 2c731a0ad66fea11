package main

import (
	"fmt"
	"io"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
)

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
