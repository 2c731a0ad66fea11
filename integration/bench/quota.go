package main

import (
	"context"
	"fmt"
	"io"
)

// quotas are what measureQuotas found. They are of the union backend and its peers, whatever the others are of.
type quotas struct {
	Disk    disk    `json:"disk"`
	Results results `json:"operations,omitempty"`
}

// measureQuotas times Usage, and what project quotas make more expensive, if the file system has them.
func measureQuotas(ctx context.Context, s settings, dir string) (_ section, err error) {
	if !s.disk.ProjectQuotas {
		return quotas{Disk: s.disk}, nil
	}
	s.backend, s.unproxied = union, true                    // who walks takes as long behind a socket
	s.scale.files, s.scale.perRound = s.scale.quotaFiles, 1 // in a guest a walk of the files takes seconds
	m := newMeasurement(s)
	m.dir = dir
	layers := func(ctx context.Context, p *peer, s size) error {
		if err := makeBase(ctx, p); err != nil {
			return err
		}
		return makeFiles(ctx, p, many, base, s.files)
	}
	err = m.withLayers(ctx, layers, func(round int) error {
		for _, l := range []life{child(), usageOfMany(m.scale)} {
			l.single = true
			if err := m.turns(ctx, round, l.name(), func(ctx context.Context, p *peer) error { return m.live(ctx, round, p, l) }); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return quotas{m.disk, m.results()}, nil
}

func (q quotas) table(w io.Writer) error {
	if !q.Disk.ProjectQuotas {
		_, err := fmt.Fprintf(w, "not measured: %v has none\n", q.Disk)
		return err
	}
	return q.Results.table(w)
}

func (q quotas) targets(s settings) (all []target) {
	op := opUsageOf(s.scale.quotaFiles)
	what := op + ", with project quotas, beside " + inProcessOf(overlayfs)
	if !q.Disk.ProjectQuotas {
		return []target{notMeasured(what, usageQuota, q.Disk.String()+" has none")}
	}
	q.Results.aim(&all, what, usageQuota, op, inProcessOf(overlayfs), op)
	return all
}
