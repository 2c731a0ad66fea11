package holders

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// A Mount is a mount in some mount namespace.
type Mount struct {
	ID           int // in use for one mount at a time
	Major, Minor uint32
	Root         string // what of the file system is mounted, as a path in it
	MountPoint   string // as seen from the root of PID
	FSType       string
	Source       string   // what it was mounted from, in the words of who did it
	Options      string   // of the file system; separated by commas, and escaped
	Branches     []string // of an aufs, which does not name them all in its options; only FindMounts fills it in

	Namespace uint64
	PID       int // of a process in the namespace
}

// errMountInfo is returned for a line that is not as proc(5) says.
var errMountInfo = errors.New("not a line of mountinfo")

// parseMounts returns the mounts of a mountinfo file that wanted returns true for. A line may be long, as an overlay names
// all its layers: longer than what moby/sys/mountinfo takes, which ends at 64 KiB.
func parseMounts(r io.Reader, wanted func(*Mount) bool) ([]Mount, error) {
	var list []Mount
	for lines := bufio.NewReaderSize(r, 64<<10); ; {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			m, err := parseMount(bytes.TrimSuffix(line, []byte("\n")))
			if err != nil {
				return nil, err
			}
			if wanted(&m) {
				list = append(list, m)
			}
		}
		if errors.Is(err, io.EOF) {
			return list, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// parseMount reads one line (proc(5), /proc/pid/mountinfo): six fields, any number of tags, a dash, and three more.
func parseMount(line []byte) (Mount, error) {
	before, after, found := bytes.Cut(line, []byte(" - "))
	head, tail := bytes.Split(before, []byte(" ")), bytes.SplitN(after, []byte(" "), 3)
	if !found || len(head) < 6 || len(tail) < 3 {
		return Mount{}, fmt.Errorf("%w: %q", errMountInfo, line)
	}
	id, err := strconv.Atoi(string(head[0]))
	major, minor, colon := strings.Cut(string(head[2]), ":")
	dev, majorErr := strconv.ParseUint(major, 10, 32)
	sub, minorErr := strconv.ParseUint(minor, 10, 32)
	if err := errors.Join(err, majorErr, minorErr); err != nil || !colon {
		return Mount{}, fmt.Errorf("%w: %q", errMountInfo, line)
	}
	return Mount{
		ID: id, Major: uint32(dev), Minor: uint32(sub),
		Root: unescape(head[3]), MountPoint: unescape(head[4]), FSType: string(tail[0]),
		Source: unescape(tail[1]), Options: string(tail[2]),
	}, nil
}

// unescape undoes the kernel's mangling of a path: space, tab, newline and backslash are three octal digits.
func unescape(s []byte) string {
	if bytes.IndexByte(s, '\\') < 0 {
		return string(s)
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(string(s[i+1:i+4]), 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
