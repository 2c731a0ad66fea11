package metadata

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/internal/failpoint"
)

// The versions of the layout in the package comment that this program knows.
const (
	schemaVersion = 2

	// versionProjects differs in that placements have project ids, which a program that knows version 2 alone would take for
	// damage. A store becomes one with the first of them.
	versionProjects = 3
)

// boltOptions are those of every store. The list of free pages is not kept in the file: it would be written with every
// commit, and after many removals it is long. bbolt finds it again by a scan at open.
func boltOptions() *bolt.Options {
	return &bolt.Options{
		Timeout:         time.Millisecond, // one try: bbolt asks again after 50 ms
		NoFreelistSync:  true,
		FreelistType:    bolt.FreelistMapType,
		InitialMmapSize: mapSize,
	}
}

// mapSize is how much of the file is mapped from the start, in bytes: bbolt must wait for all readers whenever it maps
// more. It costs address space only.
const mapSize = 256 << 20

var (
	bucketMeta     = []byte("meta")
	bucketKeys     = []byte("keys")
	bucketRecords  = []byte("records")
	bucketChildren = []byte("children")
	bucketLabels   = []byte("labels")
	bucketDevices  = []byte("devices")
	bucketTrash    = []byte("trash")

	keyVersion = []byte("version")
	keyUUID    = []byte("uuid")
	keyStarts  = []byte("starts")
	keySum     = []byte("sum")
)

// Options of opening a store.
type Options struct {
	// ReadOnly opens an existing store to be read, beside other readers. It changes nothing in the file.
	ReadOnly bool
}

// Store is an open store. Its methods may be called from several goroutines at once.
type Store struct {
	db       *bolt.DB
	batch    batcher
	readOnly bool
	uuid     string

	nextID   atomic.Uint64 // the id to reserve next
	mu       sync.Mutex    // guards devices and projects
	devices  deviceSet     // taken by records, by the trash, or reserved
	projects projectSet    // the same
}

// Open opens the store in the file path. It makes a new one where there is no file, unless o.ReadOnly.
//
// It fails at once with [ErrLocked] while another process has the store open, with [ErrVersion], [ErrNotStore] or
// [ErrDamaged] when the file is not one that this program can use; the file stays as it is. A store that is opened to be
// written passes [Store.Check] first.
func Open(path string, o Options) (*Store, error) {
	s, err := open(path, o)
	if errors.Is(err, fs.ErrNotExist) && !o.ReadOnly {
		if err = create(path); err == nil {
			s, err = open(path, o)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", path, err)
	}
	return s, nil
}

func open(path string, o Options) (*Store, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: it is no regular file", ErrNotStore)
	}
	if st.Size() == 0 { // bbolt would make it a database
		return nil, fmt.Errorf("%w: it is empty", ErrDamaged)
	}
	db, err := openBolt(path, o.ReadOnly)
	if err != nil {
		return nil, err
	}
	s := &Store{db: db, readOnly: o.ReadOnly, batch: batcher{db: db, commitTx: (*bolt.Tx).Commit}}
	if err := guardFaults(s.load); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	if err := s.openRoom(); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return s, nil
}

// openRoom begins to look after the room of a store that is to be written. A disk that is full now is no error.
func (s *Store) openRoom() (err error) {
	if s.readOnly {
		return nil
	}
	if s.batch.room, err = openRoom(s.db.Path()); err != nil {
		return err
	}
	s.batch.measure()
	_ = s.batch.room.ensure() // the first write that needs it says what is wrong
	return nil
}

// openBolt opens the file, once all that is in use of it has been looked at: what is damaged must not be built upon, and
// bbolt runs into a damaged page with a panic, at times in a goroutine where nobody can catch it.
func openBolt(path string, readOnly bool) (*bolt.DB, error) {
	if err := verifyFile(path); err != nil {
		return nil, err
	}
	db, err := openBoltOnce(path, true)
	if err != nil {
		return nil, err
	}
	err = guardFaults(func() error { return db.View(verifyMeta) })
	if err == nil && !readOnly {
		err = guardFaults(func() error { return db.View(checkAll) })
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	if readOnly {
		return db, nil
	}
	if err := db.Close(); err != nil {
		return nil, err
	}
	return openBoltOnce(path, false)
}

func openBoltOnce(path string, readOnly bool) (db *bolt.DB, err error) {
	o := boltOptions()
	o.ReadOnly = readOnly
	err = guardFaults(func() error {
		db, err = bolt.Open(path, 0o600, o)
		return err
	})
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, ErrLocked
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrVersionMismatch),
		errors.Is(err, bolterrors.ErrChecksum):
		return nil, fmt.Errorf("%w: %w", ErrNotStore, err)
	}
	return db, err
}

// verifyFile reads every page that is in use, with bbolt's lock, so that nobody writes meanwhile.
func verifyFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // nothing was written through it
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return ErrLocked
	} else if err != nil {
		return &os.PathError{Op: "flock", Path: path, Err: err}
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	err = checkPages(f, uint64(st.Size()))
	switch {
	case err == nil:
		return nil
	case isBolt(f):
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	default:
		return fmt.Errorf("%w: %w", ErrNotStore, err)
	}
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
	if v := binary.BigEndian.Uint64(version); v < schemaVersion || v > versionProjects {
		return fmt.Errorf("%w %d; this program knows %d to %d", ErrVersion, v, schemaVersion, versionProjects)
	}
	if !bytes.Equal(meta.Get(keySum), metaSum(meta)) {
		return fmt.Errorf("%w: the checksum of its uuid and its count of starts is wrong", ErrDamaged)
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

// load reads what is kept in memory.
func (s *Store) load() error {
	return s.view(func(btx *bolt.Tx) error {
		meta := btx.Bucket(bucketMeta)
		s.uuid = string(meta.Get(keyUUID))
		s.nextID.Store(btx.Bucket(bucketRecords).Sequence() + 1)
		if !s.readOnly {
			if err := s.loadProjects(btx); err != nil {
				return err
			}
		}
		return btx.Bucket(bucketDevices).ForEach(func(k, _ []byte) error {
			if len(k) == 4 {
				s.devices.take(binary.BigEndian.Uint32(k))
			}
			return nil
		})
	})
}

// create makes a new store under a temporary name and renames it, so that a power cut leaves no half-made one at path.
// A leftover of the temporary name is ours alone: the lock on the directory keeps a second creator out.
func create(path string) (err error) {
	dir, err := lockDir(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	if _, err := os.Lstat(path); err == nil {
		return nil // another process was first
	}
	temp := path + ".new"
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	db, err := bolt.Open(temp, 0o600, boltOptions())
	if err != nil {
		return err
	}
	failpoint.Hit("store.temporary")
	if err := errors.Join(db.Update(initialise), db.Close()); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	failpoint.Hit("store.initialised")
	// Its content is synced by the commit, its name by the directory.
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	failpoint.Hit("store.renamed")
	return dir.Sync()
}

func initialise(btx *bolt.Tx) error {
	for _, name := range [][]byte{bucketKeys, bucketRecords, bucketChildren, bucketLabels, bucketDevices, bucketTrash} {
		if _, err := btx.CreateBucket(name); err != nil {
			return err
		}
	}
	meta, err := btx.CreateBucket(bucketMeta)
	if err != nil {
		return err
	}
	return errors.Join(
		meta.Put(keyVersion, key8(schemaVersion)),
		meta.Put(keyUUID, []byte(uuid.NewString())),
		meta.Put(keyStarts, key8(0)),
		meta.Put(keySum, metaSum(meta)),
	)
}

// Close closes the store. It waits for the transactions under way; no write may follow. It may be called again.
func (s *Store) Close() error {
	return errors.Join(s.db.Close(), s.batch.room.close())
}

// UUID returns what tells this store from all others.
func (s *Store) UUID() string { return s.uuid }

func (s *Store) view(fn func(*bolt.Tx) error) error {
	return s.db.View(fn)
}

// key8 is a number as a key that sorts as the number does.
func key8(v uint64) []byte {
	return binary.BigEndian.AppendUint64(nil, v)
}

func key4(v uint32) []byte {
	return binary.BigEndian.AppendUint32(nil, v)
}
