package main

import (
	"fmt"
	"path/filepath"
)

// metricsSettings say where Prometheus may ask, besides the admin socket.
type metricsSettings struct {
	// Address is the path of a socket or a loopback address, or "" for none.
	Address string `toml:"address,omitempty"`
}

// tracingSettings say where traces of the calls go.
type tracingSettings struct {
	// Endpoint is the URL of a collector that speaks OTLP over HTTP, or "" for none.
	Endpoint string `toml:"endpoint,omitempty"`
}

// validateMetrics wants a socket that no other has.
func (s settings) validateMetrics() error {
	if s.Metrics.Address == "" {
		return nil
	}
	network, at, err := localNetwork("metrics.address", s.Metrics.Address)
	if err != nil || network != "unix" {
		return err
	}
	taken := map[string]string{s.Address: "the snapshotters", s.adminAddress(): "the admin socket"}
	if network, pprofAt, err := pprofNetwork(s.Pprof); err == nil && network == "unix" {
		taken[pprofAt] = "the profiles"
	}
	for other, whose := range taken {
		if other != "" && filepath.Clean(at) == filepath.Clean(other) {
			return fmt.Errorf("metrics.address: %q is the address of %s; it needs a socket of its own", s.Metrics.Address, whose)
		}
	}
	return nil
}

func (s settings) validateTracing() error {
	if s.Tracing.Endpoint == "" {
		return nil
	}
	_, err := tracesURL(s.Tracing.Endpoint)
	return err
}
