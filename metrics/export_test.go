package metrics

import "github.com/prometheus/client_golang/prometheus"

// Check collects the state as strictly as can be: each metric must be as it is described.
func (m *Metrics) Check() error {
	strict := prometheus.NewPedanticRegistry()
	if err := strict.Register(newStatusCollector(m.status)); err != nil {
		return err
	}
	_, err := strict.Gather()
	return err
}
