package features

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestRun(t *testing.T) { synctest.Test(t, runCutShort) }

func runCutShort(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	no, hangs := errors.New("no"), make(chan struct{})
	defer close(hangs)
	probes := []Probe{
		{"a", "can", func(context.Context) (string, error) { return "so", nil }},
		{"a", "cannot", func(context.Context) (string, error) { return "", no }},
		{"b", "hangs", func(context.Context) (string, error) { cancel(); <-hangs; return "", nil }},
		{"b", "never", func(context.Context) (string, error) { t.Error("tried after the end"); return "", nil }},
	}
	got := Run(ctx, probes)
	if len(got) != len(probes) {
		t.Fatalf("%d answers to %d probes", len(got), len(probes))
	}
	for i, f := range got {
		if f.Driver != probes[i].Driver || f.Name != probes[i].Name {
			t.Errorf("answer %d is to %s %s", i, f.Driver, f.Name)
		}
	}
	for _, f := range got[2:] {
		if !errors.Is(f.Err, ErrUntried) || !errors.Is(f.Err, context.Canceled) {
			t.Errorf("%s: %v", f.Name, f.Err)
		}
	}
}

// What a probe has made it takes away before Run returns.
func TestRunLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		left := false
		got := Run(ctx, []Probe{
			{"a", "leaves", func(ctx context.Context) (string, error) {
				left = true
				cancel()
				time.Sleep(leaveTime / 2) // of the bubble: what is to be taken away takes its time
				left = false
				return "", Untried(ctx.Err())
			}},
			{"a", "never", func(context.Context) (string, error) { t.Error("tried after the end"); return "", nil }},
		})
		if left {
			t.Error("something is left")
		}
		for _, f := range got {
			if !errors.Is(f.Err, ErrUntried) || !errors.Is(f.Err, context.Canceled) {
				t.Errorf("%s: %v", f.Name, f.Err)
			}
		}
	})
}

func TestRunToTheEnd(t *testing.T) {
	no := errors.New("no")
	got := Run(t.Context(), []Probe{
		{"a", "can", func(context.Context) (string, error) { return "so", nil }},
		{"a", "cannot", func(context.Context) (string, error) { return "so", no }},
	})
	want := []Feature{{"a", "can", "so", nil}, {"a", "cannot", "", no}}
	if len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("%v, want %v", got, want)
	}
}
