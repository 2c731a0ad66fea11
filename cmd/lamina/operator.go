package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/admin"
	"github.com/lamina-snapshotter/lamina/metadata"
)

// errNeedsDaemon is returned by commands that only a daemon can do, if none answers.
var errNeedsDaemon = errors.New("this needs a running daemon")

// errNoFiles is returned when no daemon has the root, and nothing is there.
var errNoFiles = errors.New("there are no files of a stopped one")

// client returns a client of the daemon that has the root of the settings.
func (s settings) client() (*admin.Client, error) {
	if s.Admin.Address == "" {
		return nil, fmt.Errorf("%w: admin.address is empty", admin.ErrNoDaemon)
	}
	return admin.NewClient(s.Admin.Address, s.Root), nil
}

// askLocked asks the daemon after the root's own files were found to be locked.
func (s settings) askLocked(locked error, ask func(*admin.Client) error) error {
	c, err := s.client()
	if err == nil {
		defer c.Close()
		err = ask(c)
	}
	if errors.Is(err, admin.ErrNoDaemon) {
		return s.lockedOut(locked, err)
	}
	return err
}

// lockedOut says that a process has the root, and does not answer.
func (s settings) lockedOut(locked, silent error) error {
	if s.Admin.Address == "" {
		return fmt.Errorf("another process has the root %s, and admin.address is empty, so it cannot be asked: %w", s.Root, locked)
	}
	return fmt.Errorf("another process has the root %s (%w), and %w. A daemon that starts or stops answers in a moment or not at all: "+
		"ask again. Or does it run with another admin.address, or none?", s.Root, locked, silent)
}

// source returns who answers what changes nothing: the daemon, or else the files of its root, until close is called.
func (s settings) source(ctx context.Context) (source admin.Source, closeIt func() error, err error) {
	c, silent := s.client()
	if silent == nil {
		if _, silent = c.Status(ctx); silent == nil {
			return c, func() error { c.Close(); return nil }, nil
		}
	}
	if !errors.Is(silent, admin.ErrNoDaemon) {
		return nil, nil, silent
	}
	stopped, err := lamina.OpenStopped(s.Config)
	switch {
	case errors.Is(err, metadata.ErrLocked):
		return nil, nil, s.lockedOut(err, silent)
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil, fmt.Errorf("%w, and %w: %w", silent, errNoFiles, err)
	case err != nil:
		return nil, nil, err
	}
	root := described{stopped, s}
	return root, stopped.Close, nil
}

// described adds to a status what a root does not know of the program.
type described struct {
	admin.Source

	settings settings
}

func (d described) Status(ctx context.Context) (admin.Status, error) {
	status, err := d.Source.Status(ctx)
	status.Version, status.Address = buildVersion(), d.settings.Address
	return status, err
}
