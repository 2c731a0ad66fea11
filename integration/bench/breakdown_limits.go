package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

// commitBytes returns how many bytes this process writes for a Create.
func (p *storeProbe) commitBytes() (uint64, error) {
	const times = 20
	before, err := written()
	if err != nil {
		return 0, err
	}
	for i := range times {
		if err := p.create(-i); err != nil {
			return 0, err
		}
	}
	after, err := written()
	if err != nil {
		return 0, err
	}
	for i := range times {
		if err := p.remove(-i); err != nil {
			return 0, err
		}
	}
	return (after - before) / times, nil
}

// written returns how many bytes this process has given to write and its kin.
func written() (uint64, error) {
	text, err := os.ReadFile("/proc/self/io")
	if err != nil {
		return 0, err
	}
	return number(string(text), "wchar:")
}

// A flushProbe is a file that has its blocks.
type flushProbe struct {
	file  *os.File
	data  []byte
	apart int64 // from one page to the next, where they are written one by one
}

const (
	page       = 4096
	pagesApart = 16
)

func newFlushProbe(path string, bytes uint64) (*flushProbe, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	p := &flushProbe{file: f, data: make([]byte, bytes), apart: pagesApart * page}
	_, err = f.Write(make([]byte, pagesApart*(bytes+page)))
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return p, nil
}

// flush writes all of it anew, and waits until it is on the disk.
func (p *flushProbe) flush(int) error {
	if _, err := p.file.WriteAt(p.data, 0); err != nil {
		return err
	}
	return unix.Fdatasync(int(p.file.Fd()))
}

// flushPages does the same to as many bytes in pages that are not next to each other, as those of a tree are.
func (p *flushProbe) flushPages(int) error {
	at := int64(0)
	for left := p.data; len(left) > 0; at += p.apart {
		n := min(len(left), page)
		if _, err := p.file.WriteAt(left[:n], at); err != nil {
			return err
		}
		left = left[n:]
	}
	return unix.Fdatasync(int(p.file.Fd()))
}

// directoryProbes are the least that a directory of a content can take: a rename of one that is there, and those that one has.
func directoryProbes(dir string) []probe {
	at := func(i int) string { return filepath.Join(dir, strconv.Itoa(i)) }
	spare := filepath.Join(dir, "spare")
	made := os.MkdirAll(filepath.Join(spare, "0"), 0o700)
	return []probe{
		{renameAlone, func(i int) error {
			if made != nil {
				return made
			}
			return os.Rename(filepath.Join(spare, "0"), at(i))
		}, func(i int) error { return os.Rename(at(i), filepath.Join(spare, "0")) }},
		{mkdirsAlone, func(i int) error {
			for _, dir := range []string{at(i), filepath.Join(at(i), "fs"), filepath.Join(at(i), "work")} {
				if err := os.Mkdir(dir, 0o700); err != nil {
					return err
				}
			}
			return nil
		}, func(i int) error { return os.RemoveAll(at(i)) }},
	}
}

// emptyCall calls a method that the daemon does not have, which its gRPC library answers.
func (w *watched) emptyCall(ctx context.Context) error {
	err := w.conn.Invoke(ctx, "/lamina.v1.None/Nothing", new(emptypb.Empty), new(emptypb.Empty))
	if status.Code(err) == codes.Unimplemented {
		return nil
	}
	return fmt.Errorf("not as it should be answered: %w", err)
}

var prepareMetric = regexp.MustCompile(`([0-9.]+) prepare-µs`)

// timeRequests runs the benchmark of dmthin/internal/dm, which has the ioctls of a volume's life to itself, and returns the median of
// those that a Prepare cannot do without.
func timeRequests(ctx context.Context, program string) (spread, error) {
	const times = 50
	cmd := exec.CommandContext(ctx, program, "-test.run", "^$", "-test.bench", "^BenchmarkVolumeLife$", "-test.benchtime", strconv.Itoa(times)+"x", "-test.timeout", "5m")
	cmd.Env = append(os.Environ(), "LAMINA_TEST_ROOT=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return spread{}, fmt.Errorf("%s: %w: %s", program, err, out)
	}
	found := prepareMetric.FindSubmatch(out)
	if found == nil {
		return spread{}, fmt.Errorf("%s says nothing of prepare-µs: %s", program, out)
	}
	v, err := strconv.ParseFloat(string(found[1]), 64)
	return spread{Median: time.Duration(v * float64(time.Microsecond)), Times: times}, err
}
