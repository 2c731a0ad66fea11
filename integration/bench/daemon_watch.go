package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	watchedStart = time.Minute     // until it serves
	watchedStop  = 2 * time.Minute // until it is killed
	lookAgain    = 2 * time.Millisecond
)

// A watched is a Lamina daemon whose profiles and process can be looked at.
type watched struct {
	snapshots.Snapshotter
	process *os.Process
	conn    *grpc.ClientConn
	pprof   *http.Client
	stop    func() error
}

// startWatched starts a daemon with what it keeps in dir, and waits until it serves.
func startWatched(ctx context.Context, s settings, dir string) (*watched, error) {
	socket, pprof, file := filepath.Join(dir, "sock"), filepath.Join(dir, "pprof"), filepath.Join(dir, "config.toml")
	config := fmt.Sprintf("root = %q\naddress = %q\npprof = %q\n[snapshotters.%s]\nbackend = %q\n[union]\nsync = \"off\"\n",
		filepath.Join(dir, "root"), socket, pprof, laminaName, s.backend)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(context.WithoutCancel(ctx), s.lamina, "serve", "--config", file, "--log-level", "error")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, ended := make(chan error, 1), make(chan struct{})
	var result error
	go func() {
		// The kernel kills it when the thread that started it ends: this one lives as long.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(ended)
		err := cmd.Start()
		started <- err
		if err == nil {
			result = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, errors.Join(err, cmd.Process.Kill())
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", pprof)
	}, DisableKeepAlives: true}
	stop := sync.OnceValue(func() error {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		timer := time.AfterFunc(watchedStop, func() { _ = cmd.Process.Kill() })
		defer timer.Stop()
		err := conn.Close()
		<-ended
		return errors.Join(err, result)
	})
	d := &watched{
		Snapshotter: proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), laminaName),
		process:     cmd.Process, conn: conn, pprof: &http.Client{Transport: transport}, stop: stop,
	}
	if err := listens(ctx, socket, ended); err != nil {
		return nil, fmt.Errorf("lamina: %w", errors.Join(err, stop()))
	}
	return d, nil
}

// listens waits until somebody does at a socket, or the process has ended.
func listens(ctx context.Context, socket string, ended <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, watchedStart)
	defer cancel()
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	for {
		if conn, err := new(net.Dialer).DialContext(ctx, "unix", socket); err == nil {
			return conn.Close()
		}
		select {
		case <-tick.C:
		case <-ended:
			return errors.New("it ended before it served")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// footprint looks at the process first: to ask for a profile takes memory.
func (d *watched) footprint(ctx context.Context, moment string) (f footprint, err error) {
	f.Moment = moment
	proc := filepath.Join("/proc", strconv.Itoa(d.process.Pid))
	entries, err := os.ReadDir(filepath.Join(proc, "fd"))
	if err != nil {
		return f, err
	}
	f.Descriptors = uint64(len(entries))
	status, err := os.ReadFile(filepath.Join(proc, "status"))
	if err != nil {
		return f, err
	}
	const kib = 1024
	for field, to := range map[string]*uint64{"VmRSS:": &f.Resident, "VmHWM:": &f.Peak, "RssAnon:": &f.Anonymous, "RssFile:": &f.File} {
		if *to, err = number(string(status), field); err != nil {
			return f, err
		}
		*to *= kib
	}
	for page, of := range map[string]struct {
		field string
		to    *uint64
	}{"goroutine?debug=1": {"goroutine profile: total", &f.Goroutines}, "heap?gc=1&debug=1": {"# HeapAlloc =", &f.Heap}} {
		text, err := d.profile(ctx, page)
		if err != nil {
			return f, err
		}
		if *of.to, err = number(text, of.field); err != nil {
			return f, err
		}
	}
	return f, nil
}

// profile gets a profile as text.
func (d *watched) profile(ctx context.Context, page string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, watchedStart)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://lamina/debug/pprof/"+page, http.NoBody)
	if err != nil {
		return "", err
	}
	reply, err := d.pprof.Do(r)
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
