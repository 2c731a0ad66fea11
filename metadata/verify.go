package metadata

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"

	"github.com/containerd/log"
	"github.com/google/uuid"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/internal/failpoint"
	"github.com/lamina-snapshotter/lamina/internal/space"
)

// verifyFile reads every page that is in use, with bbolt's lock, so that nobody writes meanwhile. A commit that was cut off
// is undone, unless readOnly.
func verifyFile(path string, readOnly bool) (judgement, error) {
	flag, lock := os.O_RDWR, unix.LOCK_EX
	if readOnly {
		flag, lock = os.O_RDONLY, unix.LOCK_SH
	}
	f, err := os.OpenFile(path, flag, 0)
	if err != nil {
		return judgement{}, err
	}
	defer f.Close() //nolint:errcheck // what was written through it was synced
	if err := unix.Flock(int(f.Fd()), lock|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return judgement{}, ErrLocked
	} else if err != nil {
		return judgement{}, &os.PathError{Op: "flock", Path: path, Err: err}
	}
	// What is only read may be written elsewhere: the count of starts into a pool. Where nothing can be written nobody does.
	if err := settleCache(f); err != nil && (!readOnly || !unwritable(err)) {
		return judgement{}, err
	}
	st, err := f.Stat()
	if err != nil {
		return judgement{}, err
	}
	judged, err := judge(f, uint64(st.Size()))
	if err != nil || judged.cutOff == nil {
		return judged, classify(f, err)
	}
	if err := verifyKept(f, judged); err != nil {
		return judged, fmt.Errorf("transaction %d is not whole, and of the one before: %w", judged.cutOff.txid(), err)
	}
	if readOnly {
		return judged, fmt.Errorf("%w: transaction %d, upon %d: %w", ErrCutOff, judged.cutOff.txid(), judged.page.txid(), judged.missed)
	}
	return judged, undo(f, judged)
}

// classify says what it means that neither state of a file is a sound one. nil stays nil.
func classify(f io.ReaderAt, err error) error {
	switch {
	case err == nil, unread(err):
		return err
	case isBolt(f):
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	default:
		return fmt.Errorf("%w: %w", ErrNotStore, err)
	}
}

// unwritable reports whether err is the sync's where a file system, or its disk, takes no writes.
func unwritable(err error) bool {
	return errors.Is(err, unix.EROFS) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP)
}

// verifyKept checks the state before a commit that was cut off as one that is opened is checked: whether it is of a version that
// this program knows, and says the same everywhere. bbolt reads it in a copy in memory, so that nothing is undone if not.
func verifyKept(f *os.File, judged judgement) error {
	fd, err := unix.MemfdCreate("lamina.db", unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL) // vm.memfd_noexec may insist
	if errors.Is(err, unix.EINVAL) {                                                // before Linux 6.3
		fd, err = unix.MemfdCreate("lamina.db", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return os.NewSyscallError("memfd_create", err)
	}
	kept := os.NewFile(uintptr(fd), "lamina.db")
	defer kept.Close() //nolint:errcheck // it is gone with it; bbolt has closed it, unless it could not be opened
	if _, err := io.Copy(kept, io.NewSectionReader(f, 0, int64(judged.page.high()*judged.page.pageSize))); err != nil {
		return err
	}
	if _, err := kept.WriteAt(judged.undone(), int64(judged.cutOff.id*judged.cutOff.pageSize)); err != nil {
		return err
	}
	o := boltOptions()
	o.ReadOnly, o.InitialMmapSize = true, 0
	o.OpenFile = func(string, int, os.FileMode) (*os.File, error) { return kept, nil }
	return guardFaults(func() error {
		db, err := bolt.Open(kept.Name(), 0o600, o)
		if err != nil {
			return err
		}
		err = db.View(verifyMeta)
		if err == nil && !judged.agrees {
			err = db.View(checkAll)
		}
		return errors.Join(err, db.Close())
	})
}

// settleCache makes what is read of a store in order what its disk has. A daemon that was killed may have left a state that is in
// the page cache alone, and the next commit overwrites pages of the state before. After a sync that failed the kernel takes for
// written what it could not write, until it reads it again: also the stamp that says of a state that it is settled.
func settleCache(f *os.File) error {
	if err := f.Sync(); err != nil {
		return space.Explain(err, f.Name())
	}
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) // a file system without a disk has nothing to read again
	return nil
}

// undo goes back to the state before a commit that was cut off, which nobody was told of: its callers wait for the sync that
// failed to come. It writes one sector. A power cut leaves the one from before, and the next open comes here again, or this.
func undo(f *os.File, judged judgement) error {
	failpoint.Hit("store.undo")
	if _, err := f.WriteAt(judged.undone(), int64(judged.cutOff.id*judged.cutOff.pageSize)); err != nil {
		return space.Explain(err, f.Name())
	}
	if err := f.Sync(); err != nil {
		return space.Explain(err, f.Name())
	}
	failpoint.Hit("store.undone")
	log.L.WithField("store", f.Name()).WithField("undone", judged.cutOff.txid()).WithField("kept", judged.page.txid()).
		WithField("missed", judged.missed).Warn("the last commit of the store is not on the disk as a whole, and is undone")
	return nil
}

// isBolt reports whether one of the first pages, of which both are meta pages, is one of bbolt's.
func isBolt(f io.ReaderAt) bool {
	head := make([]byte, 2*maxPageSize)
	n, _ := f.ReadAt(head, 0) // what cannot be read is none
	return bytes.Contains(head[:n], binary.NativeEndian.AppendUint32(nil, boltMagic))
}

// verifyMeta checks that the file is a store of the known version.
func verifyMeta(btx *bolt.Tx) error {
	meta := btx.Bucket(bucketMeta)
	if meta == nil {
		return fmt.Errorf("%w: it is a bbolt file of another program", ErrNotStore)
	}
	version := meta.Get(keyVersion)
	if len(version) != 8 {
		return fmt.Errorf("%w: it has no schema version", ErrNotStore)
	}
	v := binary.BigEndian.Uint64(version)
	if v > schemaVersion {
		return fmt.Errorf("%w %d; this program knows %d to %d: install the lamina that wrote it, or a later one", ErrVersion, v, oldestVersion, schemaVersion)
	}
	if v < oldestVersion {
		return fmt.Errorf("%w %d; this program knows %d to %d", ErrVersion, v, oldestVersion, schemaVersion)
	}
	if !bytes.Equal(meta.Get(keySum), metaSum(meta)) {
		return fmt.Errorf("%w: the checksum of its uuid and its count of starts is wrong", ErrDamaged)
	}
	// Names of devices are made of it.
	if uuid.Validate(string(meta.Get(keyUUID))) != nil || len(meta.Get(keyStarts)) != 8 {
		return fmt.Errorf("%w: its uuid or its count of starts is none", ErrDamaged)
	}
	for _, name := range [][]byte{bucketKeys, bucketRecords, bucketChildren, bucketLabels, bucketDevices, bucketTrash} {
		if btx.Bucket(name) == nil {
			return fmt.Errorf("%w: the bucket %q is missing", ErrDamaged, name)
		}
	}
	return nil
}

// guardFaults turns what a damaged file makes of bbolt, a panic or a fault in the mapped file, into ErrDamaged.
func guardFaults(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", ErrDamaged, r)
		}
	}()
	return fn()
}
