package holders

import (
	"fmt"
	"strings"
)

// A Holder is one use of a directory or of a device. The fields that do not concern it are empty.
type Holder struct {
	PID     int    // a process; for a mount, one of those in its namespace, or 0 if that is our own
	Command string // the name of that process

	Namespace  uint64 // the mount namespace that MountPoint is in, as /proc/PID/ns/mnt has it
	MountPoint string // where it is mounted, as seen in that namespace
	File       string // what the process has open

	Device string // a block device upon it, such as "dm-3"
	Loop   string // a loop device whose file lies there, such as "loop7"
}

// String says who it is and what he does, as "containerd-shim (pid 812) has it mounted at /run/x in mount namespace 4026532211".
func (h Holder) String() string {
	process := fmt.Sprintf("%s (pid %d)", h.Command, h.PID)
	switch {
	case h.MountPoint != "" && h.PID == 0:
		return fmt.Sprintf("it is mounted at %s in mount namespace %d, that of this process", h.MountPoint, h.Namespace)
	case h.MountPoint != "":
		return fmt.Sprintf("%s has it mounted at %s in mount namespace %d", process, h.MountPoint, h.Namespace)
	case h.File != "":
		return fmt.Sprintf("%s has %s open", process, h.File)
	case h.Loop != "":
		return h.Loop + " is a loop device on it"
	case h.Device != "":
		return h.Device + " is a device on it"
	}
	return process
}

// maxNamed is how many holders a sentence names.
const maxNamed = 3

// Sentence names the first of the holders, and says how many more there are.
func Sentence(hs []Holder) string {
	if len(hs) == 0 {
		return "nobody that can be seen has it"
	}
	var parts []string
	for _, h := range hs[:min(maxNamed, len(hs))] {
		parts = append(parts, h.String())
	}
	if more := len(hs) - maxNamed; more > 0 {
		parts = append(parts, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(parts, "; ")
}
