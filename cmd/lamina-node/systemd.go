package main

import (
	"context"
	"fmt"

	"github.com/coreos/go-systemd/v22/dbus"
)

// A systemd is that of the node, reached by the socket that it has for root.
type systemd struct {
	conn *dbus.Conn
}

// connect connects until the context is done, whatever else is asked with another.
func connect(ctx context.Context) (*systemd, error) {
	conn, err := dbus.NewSystemdConnectionContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("systemd, by /run/systemd/private: %w", err)
	}
	return &systemd{conn}, nil
}

func (s *systemd) close() { s.conn.Close() }

func (s *systemd) reload(ctx context.Context) error {
	if err := s.conn.ReloadContext(ctx); err != nil {
		return fmt.Errorf("systemctl daemon-reload: %w", err)
	}
	return nil
}

// enable has units started at each boot, as their files say now.
func (s *systemd) enable(ctx context.Context, units ...string) error {
	if _, _, err := s.conn.EnableUnitFilesContext(ctx, units, false, true); err != nil {
		return fmt.Errorf("systemctl enable %v: %w", units, err)
	}
	return s.reload(ctx)
}

// disable stops units, which may be none, and has them started no more.
func (s *systemd) disable(ctx context.Context, units ...string) error {
	for _, unit := range units {
		state, err := s.property(ctx, unit, "LoadState")
		if err != nil {
			return err
		}
		if state == "not-found" {
			continue
		}
		if err := s.job(ctx, "stop", unit, s.conn.StopUnitContext); err != nil {
			return err
		}
	}
	if _, err := s.conn.DisableUnitFilesContext(ctx, units, false); err != nil {
		return fmt.Errorf("systemctl disable %v: %w", units, err)
	}
	return nil
}

func (s *systemd) start(ctx context.Context, unit string) error {
	return s.job(ctx, "start", unit, s.conn.StartUnitContext)
}

func (s *systemd) restart(ctx context.Context, unit string) error {
	return s.job(ctx, "restart", unit, s.conn.RestartUnitContext)
}

// A jobError is a job that systemd has ended otherwise than it was to.
type jobError struct {
	verb, unit string
	result     string // of org.freedesktop.systemd1.Manager.JobRemoved
}

func (e *jobError) Error() string {
	return fmt.Sprintf("systemctl %s %s: %s; \"journalctl -u %s\" on the node says why", e.verb, e.unit, e.result, e.unit)
}

// job waits until systemd has done something with a unit: one that notifies is ready then.
func (s *systemd) job(ctx context.Context, verb, unit string,
	begin func(ctx context.Context, name, mode string, ch chan<- string) (int, error),
) error {
	result := make(chan string, 1)
	if _, err := begin(ctx, unit, "replace", result); err != nil {
		return fmt.Errorf("systemctl %s %s: %w", verb, unit, err)
	}
	select {
	case r := <-result:
		if r != "done" {
			return &jobError{verb, unit, r}
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("systemctl %s %s: %w", verb, unit, context.Cause(ctx))
	}
}

func (s *systemd) property(ctx context.Context, unit, name string) (string, error) {
	p, err := s.conn.GetUnitPropertyContext(ctx, unit, name)
	if err != nil {
		return "", fmt.Errorf("systemctl show %s: %w", unit, err)
	}
	text, ok := p.Value.Value().(string)
	if !ok {
		return "", fmt.Errorf("systemctl show %s: %s is no text", unit, name)
	}
	return text, nil
}
