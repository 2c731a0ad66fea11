package dmthin

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// SELinux wants every mount of a file system to name the same contexts (selinux_set_mnt_opts in security/selinux/hooks.c).
// containerd mounts a container's volume with context=, so whoever mounts it beside that, to ask it something, has to do so too.

// contextKeys are the mount options that SELinux compares.
var contextKeys = [...]string{"context", "fscontext", "defcontext", "rootcontext"}

// mountedContexts returns the options with SELinux contexts that a device is mounted with in our mount namespace, as
// KEY=VALUE, or none.
func mountedContexts(device string) ([]string, error) {
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: device, Err: err}
	}
	major, minor := unix.Major(st.Rdev), unix.Minor(st.Rdev)
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		same := m.Major == int(major) && m.Minor == int(minor)
		return !same, same
	})
	if err != nil || len(mounts) == 0 {
		return nil, err
	}
	return contexts(mounts[0].VFSOptions)
}

// contexts returns the options with contexts among those of a file system, as /proc/self/mountinfo has them: a value with
// commas in it is in quotes.
func contexts(options string) (found []string, err error) {
	for options != "" {
		key, rest, _ := strings.Cut(options, "=")
		if i := strings.IndexByte(key, ','); i >= 0 || rest == "" {
			_, options, _ = strings.Cut(options, ",") // an option without a value
			continue
		}
		value, next, _ := strings.Cut(rest, ",")
		if strings.HasPrefix(rest, `"`) {
			var closed bool
			if value, next, closed = strings.Cut(rest[1:], `"`); !closed {
				return nil, fmt.Errorf("the mount options %q end within quotes", options)
			}
			next = strings.TrimPrefix(next, ",")
		}
		if slices.Contains(contextKeys[:], key) {
			found = append(found, key+"="+value)
		}
		options = next
	}
	return found, nil
}
