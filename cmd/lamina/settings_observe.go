package main

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

func (s settings) validateMetrics() error {
	if s.Metrics.Address == "" {
		return nil
	}
	_, _, err := localNetwork("metrics.address", s.Metrics.Address)
	return err
}

func (s settings) validateTracing() error {
	if s.Tracing.Endpoint == "" {
		return nil
	}
	_, err := tracesURL(s.Tracing.Endpoint)
	return err
}
