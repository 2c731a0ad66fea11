package main

import (
	"fmt"
	"io"
)

// A target is what was asked for, and what came out.
type target struct {
	What string `json:"what"`
	// Limit is the most that Measured may be, in Unit: "x" is times what Lamina is measured beside.
	Limit    float64 `json:"limit"`
	Measured float64 `json:"measured"`
	Unit     string  `json:"unit"`
	Met      bool    `json:"met"`
	// NotMeasured says why nothing was, or is "".
	NotMeasured string `json:"not_measured,omitempty"`
}

const times = "x"

func newTarget(what string, limit, measured float64, unit string) target {
	return target{What: what, Limit: limit, Measured: measured, Unit: unit, Met: measured <= limit}
}

// notMeasured is a target in times of which nothing can be said, and why.
func notMeasured(what string, limit float64, why string) target {
	return target{What: what, Limit: limit, Unit: times, NotMeasured: why}
}

// A section that there are targets for.
type aimed interface {
	targets(s settings) []target
}

func printTargets(w io.Writer, targets []target) error {
	rows := [][]string{{"target", "at most", "measured", ""}}
	for _, g := range targets {
		measured, met := fmt.Sprintf("%.3g %s", g.Measured, g.Unit), "met"
		switch {
		case g.NotMeasured != "":
			measured, met = "-", "not measured: "+g.NotMeasured
		case !g.Met:
			met = "NOT met"
		}
		rows = append(rows, []string{g.What, fmt.Sprintf("%.3g %s", g.Limit, g.Unit), measured, met})
	}
	return printRows(w, 0, rows)
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

// aim adds a target for what Lamina takes for an operation beside what another does.
func (r results) aim(all *[]target, what string, limit float64, op, peer, otherOp string) {
	ours, ok := r.median(op, laminaName)
	theirs, also := r.median(otherOp, peer)
	switch {
	case !ok:
		*all = append(*all, notMeasured(what, limit, "not timed of "+laminaName))
	case !also:
		*all = append(*all, notMeasured(what, limit, "not timed of "+peer))
	default:
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
	removing, resting := during(s.scale)
	r.aim(&all, removing+", beside the same without", duringRemoval, removing, laminaName, resting)
	usage := opUsageOf(s.scale.files)
	r.aim(&all, opUsageAgain(s.scale.files)+", beside "+in+" that walks", usageAgain, opUsageAgain(s.scale.files), in, usage)
	r.aim(&all, usage+", again, beside "+in, usageAgain, usage, in, usage)
	return all
}

// thinTargets are for all operations. Those that have to do with no device, as Stat, read a database, on both sides.
func (r results) thinTargets(s settings) (all []target) {
	in := inProcessOf(devMapper)
	serial := []string{
		opFirst, opPrepare, opView, opMounts, opStat, opWalk(s.scale.walked), opUsage, opUsageOf(s.scale.files), opCommit, opRemove, opLayer, opOfView,
	}
	for _, op := range serial {
		r.aim(&all, op+", beside "+in, thinDevmapper, op, in, op)
	}
	for _, op := range []string{opFirst, opPrepare, opView, opMounts, opStat, opUsage, opCommit, opRemove, opLayer, opOfView} {
		op = atOnceName(op, s.scale.clients)
		r.aim(&all, op+", beside "+in, thinDevmapper, op, in, op)
	}
	all = append(all, notMeasured(opPrepares(s.scale.prepares)+", beside "+in, thinDevmapper, "a minute of devmapper"))
	removing, resting := during(s.scale)
	r.aim(&all, removing+", beside the same without", duringRemoval, removing, laminaName, resting)
	r.aim(&all, opFirst+", beside that of a child", thinFirst, opFirst, laminaName, opPrepare)
	what := "Prepare and Remove, beside those of " + laminaUnion
	ours, ok := r.sum(laminaName, opPrepare, opRemove)
	theirs, also := r.sum(laminaUnion, opPrepare, opRemove)
	if !ok || !also {
		return append(all, notMeasured(what, thinUnion, "not timed of both"))
	}
	return append(all, newTarget(what, thinUnion, float64(ours)/float64(theirs), times))
}
