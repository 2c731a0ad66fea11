package metadata

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/lamina-snapshotter/lamina/internal/failpoint"
)

// The versions of the layout in the package comment that this program knows. Version 3 differs from 2 in that placements may
// have project ids; 4 has the stamps of commits, without which a power cut in the middle of one is damage. The first open to
// write makes an older one the newest.
const (
	oldestVersion = 2
	schemaVersion = 4
)

// boltOptions are those of every store. The list of free pages is not kept in the file: it would be written with every
// commit, and after many removals it is long. bbolt finds it again by a scan at open. What bbolt syncs is the growth of the
// file; the batcher syncs the commits.
func boltOptions() *bolt.Options {
	return &bolt.Options{
		Timeout:         time.Millisecond, // one try: bbolt asks again after 50 ms
		NoFreelistSync:  true,
		NoSync:          true,
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
	schema   int

	nextID   atomic.Uint64 // the id to reserve next
	mu       sync.Mutex    // guards devices and projects
	devices  deviceSet     // taken by records, by the trash, or reserved
	projects projectSet    // the same
}

// Open opens the store in the file path. It makes a new one where there is no file, unless o.ReadOnly.
//
// It fails at once with [ErrLocked] while another process has the store open, with [ErrVersion], [ErrNotStore] or
// [ErrDamaged] when the file is not one that this program can use; the file stays as it is. A store that is opened to be
// written passes [Store.Check] first. Where a power cut has cut off a commit, that is undone; a store that is opened
// read-only is [ErrCutOff] then.
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
	db, judged, err := openBolt(path, o.ReadOnly)
	if err != nil {
		return nil, err
	}
	s := &Store{db: db, readOnly: o.ReadOnly, batch: batcher{db: db, commitTx: (*bolt.Tx).Commit, sync: db.Sync}}
	if err := guardFaults(s.load); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	if o.ReadOnly {
		return s, nil
	}
	if err := s.beginWrites(judged); err != nil {
		return nil, errors.Join(err, s.batch.closeFiles())
	}
	return s, nil
}

// beginWrites makes a store that was judged so ready to be written. A disk that is full now is no error.
func (s *Store) beginWrites(judged judgement) (err error) {
	if s.batch.room, err = openRoom(s.db.Path()); err != nil {
		return err
	}
	if s.batch.stamps, err = openStamps(s.db.Path(), judged.page.pageSize); err != nil {
		return err
	}
	s.batch.measure()
	_ = s.batch.room.ensure() // the first write that needs it says what is wrong
	return s.batch.begin(judged)
}

// openBolt opens the file, once all that is in use of it has been looked at: what is damaged must not be built upon, and
// bbolt runs into a damaged page with a panic, at times in a goroutine where nobody can catch it. What is not of this program and
// version it does not open to write: only then it reads the list of free pages, which other programs keep.
func openBolt(path string, readOnly bool) (*bolt.DB, judgement, error) {
	judged, err := verifyFile(path, readOnly)
	if err != nil {
		return nil, judged, err
	}
	db, err := openBoltOnce(path, true)
	if err != nil {
		return nil, judged, err
	}
	err = guardFaults(func() error { return db.View(verifyMeta) })
	if err == nil && !readOnly && !judged.agrees {
		err = guardFaults(func() error { return db.View(checkAll) })
	}
	if err != nil {
		return nil, judged, errors.Join(err, db.Close())
	}
	if readOnly {
		return db, judged, nil
	}
	if err := db.Close(); err != nil {
		return nil, judged, err
	}
	db, err = openBoltOnce(path, false)
	return db, judged, err
}

func openBoltOnce(path string, readOnly bool) (db *bolt.DB, err error) {
	o := boltOptions()
	o.ReadOnly = readOnly
	o.OpenFile = func(name string, flag int, mode os.FileMode) (*os.File, error) {
		if name == path { // bbolt opens its copies so too
			flag &^= os.O_CREATE // it was there, and if it has gone since is not to be made
		}
		return os.OpenFile(name, flag, mode)
	}
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

// load reads what is kept in memory.
func (s *Store) load() error {
	return s.view(func(btx *bolt.Tx) error {
		meta := btx.Bucket(bucketMeta)
		s.uuid = string(meta.Get(keyUUID))
		s.schema = schemaVersion // to which an older one is brought before it is written
		if v := meta.Get(keyVersion); s.readOnly && len(v) == 8 {
			s.schema = int(binary.BigEndian.Uint64(v))
		}
		if err := s.batch.tally.load(btx); err != nil {
			return err
		}
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
	o := boltOptions()
	o.NoSync = false
	db, err := bolt.Open(temp, 0o600, o)
	if err != nil {
		return err
	}
	failpoint.Hit("store.temporary")
	if err := errors.Join(db.Update(initialise), db.Close()); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	failpoint.Hit("store.initialised")
	// Its content is synced by the commit, its name by the directory. It has no stamp until it is opened.
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

// Close closes the store, and notes in the file that it is whole. It waits for the transactions under way; a write that comes
// later is an error and changes nothing. It may be called again.
func (s *Store) Close() error {
	if s.readOnly {
		return s.db.Close()
	}
	return s.batch.close()
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
