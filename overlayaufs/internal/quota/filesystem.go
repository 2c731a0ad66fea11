package quota

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Limits bound what is in a project. 0 is no limit.
type Limits struct {
	Bytes  uint64 // on disk, in multiples of 512; another number is rounded up
	Inodes uint64
}

// A Count is what the file system counts for a project: blocks that are only reserved, until a file is written back, too.
type Count struct {
	Bytes  uint64 // on disk
	Inodes uint64
	Limits Limits
}

// State says what a file system does for projects.
type State struct {
	Counted  bool // it counts what is in them
	Enforced bool // it keeps their limits
}

// A FileSystem answers for the file system that a descriptor given to its methods lies on. They take no time.
type FileSystem struct {
	device string // of the file system, where the kernel must be given it
	do     request
}

// Find returns the FileSystem of a descriptor, and what it does for projects now. Kernels before Linux 5.14, which have no
// quotactl_fd(2), are asked by the path of the block device.
//
// A file system without quotas is no error. To ask needs CAP_SYS_ADMIN in the first user namespace.
func Find(fd int) (FileSystem, State, error) {
	f := FileSystem{do: quotactl}
	state, err := f.State(fd)
	if !errors.Is(err, unix.ENOSYS) { // the kernel has no such call, or this file system no quotas
		return f, state, err
	}
	if f.device, err = deviceOf(fd); err != nil || f.device == "" {
		return f, State{}, err
	}
	state, err = f.State(fd)
	if errors.Is(err, unix.ENOSYS) {
		err = nil
	}
	return f, state, err
}

// State returns what the file system does for projects.
func (f FileSystem) State(fd int) (State, error) {
	buf := make([]byte, statvSize)
	buf[0] = statvVersion
	if err := f.do(fd, f.device, qXGETQSTATV, 0, buf); err != nil {
		return State{}, os.NewSyscallError("quotactl Q_XGETQSTATV", err)
	}
	flags := native.Uint16(buf[offStatvFlags:])
	return State{Counted: flags&quotaPdqAcct != 0, Enforced: flags&quotaPdqEnfd != 0}, nil
}

// Count returns what is counted for a project. One that has never had anything is all zero.
func (f FileSystem) Count(fd int, project uint32) (Count, error) {
	buf := make([]byte, diskQuotaSize)
	err := f.do(fd, f.device, qXGETQUOTA, project, buf)
	if errors.Is(err, unix.ENOENT) { // xfs
		return Count{}, nil
	}
	if err != nil {
		return Count{}, fmt.Errorf("project %d: %w", project, os.NewSyscallError("quotactl Q_XGETQUOTA", err))
	}
	return Count{
		Bytes:  native.Uint64(buf[offBCount:]) * basicBlock,
		Inodes: native.Uint64(buf[offICount:]),
		Limits: Limits{
			Bytes:  native.Uint64(buf[offBlkHardLimit:]) * basicBlock,
			Inodes: native.Uint64(buf[offInoHardLimit:]),
		},
	}, nil
}

// SetLimits sets the limits of a project. What is more already stays, and grows no more. A power cut may undo it: the change is in
// the file system's journal, and durable with what comes after it there.
func (f FileSystem) SetLimits(fd int, project uint32, l Limits) error {
	buf := make([]byte, diskQuotaSize)
	buf[offVersion] = diskQuotaVersion
	buf[offFlags] = flagProject
	native.PutUint16(buf[offFieldMask:], fieldISoft|fieldIHard|fieldBSoft|fieldBHard)
	native.PutUint32(buf[offID:], project)
	native.PutUint64(buf[offBlkHardLimit:], l.Bytes/basicBlock+min(l.Bytes%basicBlock, 1))
	native.PutUint64(buf[offInoHardLimit:], l.Inodes)
	if err := f.do(fd, f.device, qXSETQLIM, project, buf); err != nil {
		return fmt.Errorf("project %d: %w", project, os.NewSyscallError("quotactl Q_XSETQLIM", err))
	}
	return nil
}
