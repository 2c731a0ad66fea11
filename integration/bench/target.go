package main

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// A target is what was asked for, and what came out.
type target struct {
	What string `json:"what"`
	// Limit is the most that Measured may be, in Unit: "x" is times what Lamina is measured beside.
	Limit    float64 `json:"limit"`
	Measured float64 `json:"measured"`
	Unit     string  `json:"unit"`
	Met      bool    `json:"met"`
}

const times = "x"

func newTarget(what string, limit, measured float64, unit string) target {
	return target{what, limit, measured, unit, measured <= limit}
}

// A section that there are targets for.
type aimed interface {
	targets(s settings) []target
}

func printTargets(w io.Writer, targets []target) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "target\tat most\tmeasured\t")
	for _, g := range targets {
		met := "met"
		if !g.Met {
			met = "NOT met"
		}
		_, _ = fmt.Fprintf(t, "%s\t%.3g %s\t%.3g %s\t%s\n", g.What, g.Limit, g.Unit, g.Measured, g.Unit, met)
	}
	return t.Flush()
}

// What is asked for of the operations.
const (
	unionInProcess = 1.1  // times overlayfs in process
	unionProxied   = 0.8  // times overlayfs behind containerd's service
	unionAtOnce    = 0.35 // times overlayfs in process, many at once
	duringRemoval  = 1.1  // times what it takes without: no slower, but for what is noise
	usageAgain     = 1.0 / 50
	usageQuota     = 1.0 / 100
	thinDevmapper  = 1.0 / 30
	thinUnion      = 2.0 // times the union's, on one disk
	thinFirst      = 1.1 // times what a child takes: no slower, but for what is noise
)

func (r results) targets(s settings) []target {
	if s.backend == thin {
		return r.thinTargets(s)
	}
	return r.unionTargets(s)
}

// aim adds a target for what Lamina takes for an operation beside what another does. One that was not measured has none.
func (r results) aim(all *[]target, what string, limit float64, op, peer, otherOp string) {
	ours, ok := r.median(op, laminaName)
	theirs, also := r.median(otherOp, peer)
	if ok && also {
		*all = append(*all, newTarget(what, limit, float64(ours)/float64(theirs), times))
	}
}

func (r results) unionTargets(s settings) (all []target) {
	in, behind := inProcessOf(overlayfs), proxiedOf(overlayfs)
	for _, op := range []string{opPrepare, opCommit, opRemove} {
		r.aim(&all, op+", beside "+in, unionInProcess, op, in, op)
		r.aim(&all, op+", beside "+behind, unionProxied, op, behind, op)
	}
	for _, op := range []string{opPrepare, opCommit, opRemove} {
		op = atOnceName(op, s.scale.clients)
		r.aim(&all, op+", beside "+in, unionAtOnce, op, in, op)
	}
	deleting, resting := during(s.scale)
	r.aim(&all, deleting+", beside the same without", duringRemoval, deleting, laminaName, resting)
	usage := opUsageOf(s.scale.files)
	r.aim(&all, opUsageAgain(s.scale.files)+", beside "+in+" that walks", usageAgain, opUsageAgain(s.scale.files), in, usage)
	r.aim(&all, usage+", again, beside "+in, usageAgain, usage, in, usage)
	return all
}

// thinTargets are for what has to do with devices: the rest reads a database.
func (r results) thinTargets(s settings) (all []target) {
	in := inProcessOf(devMapper)
	for _, op := range []string{opFirst, opPrepare, opView, opUsage, opCommit, opRemove, opLayer, opOfView} {
		r.aim(&all, op+", beside "+in, thinDevmapper, op, in, op)
	}
	for _, op := range []string{opFirst, opPrepare, opView, opUsage, opCommit, opRemove, opLayer, opOfView} {
		op = atOnceName(op, s.scale.clients)
		r.aim(&all, op+", beside "+in, thinDevmapper, op, in, op)
	}
	r.aim(&all, opPrepares(s.scale.prepares)+", beside "+in, thinDevmapper, opPrepares(s.scale.prepares), in, opPrepares(s.scale.prepares))
	deleting, resting := during(s.scale)
	r.aim(&all, deleting+", beside the same without", duringRemoval, deleting, laminaName, resting)
	r.aim(&all, opFirst+", beside that of a child", thinFirst, opFirst, laminaName, opPrepare)
	if ours, ok := r.sum(laminaName, opPrepare, opRemove); ok {
		if theirs, ok := r.sum(laminaUnion, opPrepare, opRemove); ok {
			all = append(all, newTarget("Prepare and Remove, beside those of "+laminaUnion, thinUnion, float64(ours)/float64(theirs), times))
		}
	}
	return all
}
