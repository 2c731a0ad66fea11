package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"google.golang.org/grpc"
)

// profileTime is how long a daemon may take to answer with a profile.
const profileTime = time.Minute

// A watched is a daemon whose profiles and process can be looked at, and whose snapshotter is called as those of peers are.
type watched struct {
	*daemon
	snapshots.Snapshotter
	conn  *grpc.ClientConn
	pprof *http.Client
}

// startWatched starts a daemon with what it keeps in dir, and waits until it serves.
func startWatched(ctx context.Context, s settings, dir string) (*watched, error) {
	pprof := filepath.Join(dir, "pprof")
	d, err := newDaemon(s.lamina, dir, laminaName, s.backend, fmt.Sprintf("pprof = %q\n", pprof)+syncOff)
	if err != nil {
		return nil, err
	}
	// Who asks for what is in use of the heap asks for a profile, which takes up to a megabyte of it if anything has been sampled.
	d.env = []string{"GODEBUG=memprofilerate=0"}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", pprof)
	}, DisableKeepAlives: true}
	w := &watched{daemon: d, pprof: &http.Client{Transport: transport}}
	return w, w.start(ctx)
}

// start starts it, also again, and connects to it.
func (w *watched) start(ctx context.Context) error {
	conn, err := dial(w.socket())
	if err != nil {
		return err
	}
	if err := w.daemon.start(ctx); err != nil {
		return errors.Join(err, conn.Close())
	}
	w.conn, w.Snapshotter = conn, proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), laminaName)
	return nil
}

// stop ends it, if it runs.
func (w *watched) stop() error {
	if w.process == nil {
		return nil
	}
	return errors.Join(w.conn.Close(), w.daemon.stop())
}

// footprint looks at a daemon, and leaves it to itself when it collects. It looks at the process first: to ask for a profile takes
// memory.
func (w *watched) footprint(ctx context.Context, moment string) (f footprint, err error) {
	f.Moment = moment
	proc := filepath.Join("/proc", strconv.Itoa(w.process.cmd.Process.Pid))
	entries, err := os.ReadDir(filepath.Join(proc, "fd"))
	if err != nil {
		return f, err
	}
	f.Descriptors = uint64(len(entries))
	status, err := os.ReadFile(filepath.Join(proc, "status"))
	if err != nil {
		return f, err
	}
	memory := []figure{{"VmRSS:", &f.Resident}, {"VmHWM:", &f.Peak}, {"RssAnon:", &f.Anonymous}, {"RssFile:", &f.File}}
	if err := numbers(string(status), memory...); err != nil {
		return f, err
	}
	const kib = 1024
	for _, m := range memory {
		*m.to *= kib
	}
	text, err := w.profile(ctx, "goroutine?debug=1")
	if err != nil {
		return f, err
	}
	return f, numbers(text, figure{"goroutine profile: total", &f.Goroutines})
}

// collections is how often a daemon is asked to collect.
const collections = 6

// collected is footprint, and the least that is in use of the heap after a collection: what pools hold is free after a second one,
// and what is done in the background, as to read all mounts of the host, may take a megabyte for a moment.
func (w *watched) collected(ctx context.Context, moment string) (f footprint, err error) {
	if f, err = w.footprint(ctx, moment); err != nil {
		return f, err
	}
	f.Heap, f.Objects = math.MaxUint64, math.MaxUint64
	for range collections {
		text, err := w.profile(ctx, "heap?gc=1&debug=1")
		if err != nil {
			return f, err
		}
		var heap, objects uint64
		if err := numbers(text, figure{"# HeapAlloc =", &heap}, figure{"# HeapObjects =", &objects}); err != nil {
			return f, err
		}
		f.Heap, f.Objects = min(f.Heap, heap), min(f.Objects, objects)
	}
	return f, nil
}

// profile gets a profile as text.
func (w *watched) profile(ctx context.Context, page string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, profileTime)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://lamina/debug/pprof/"+page, http.NoBody)
	if err != nil {
		return "", err
	}
	reply, err := w.pprof.Do(r)
	if err != nil {
		return "", err
	}
	text, err := io.ReadAll(reply.Body)
	if err == nil && reply.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", page, reply.Status)
	}
	return string(text), errors.Join(err, reply.Body.Close())
}

// number returns the number that follows a field, at the begin of a line.
func number(text, field string) (uint64, error) {
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		rest, found := strings.CutPrefix(lines.Text(), field)
		if fields := strings.Fields(rest); found && len(fields) > 0 {
			return strconv.ParseUint(fields[0], 10, 64)
		}
	}
	return 0, fmt.Errorf("there is no %q", field)
}

// A figure stands after a field.
type figure struct {
	field string
	to    *uint64
}

func numbers(text string, figures ...figure) (err error) {
	for _, f := range figures {
		if *f.to, err = number(text, f.field); err != nil {
			return err
		}
	}
	return nil
}
