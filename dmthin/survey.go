package dmthin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
)

// A Survey is what there is of a pool, for whoever compares it with the store: in its place, in its metadata and in the
// kernel. Sizes are in bytes.
type Survey struct {
	UUID string // of the store that the place belongs to; "" if it is missing or new
	Pool SurveyedPool

	Volumes []SurveyedVolume // by ascending id
	// Unread is why the volumes are not known, nil if they are: the metadata are damaged, or the disk does not give them.
	Unread error
	// NotRead is why they are not known if that says nothing of the metadata: the pool was in the way, or its disk hangs.
	NotRead error

	Devices []SurveyedDevice // with names of the store's
	Loops   []SurveyedLoop   // with the files of the place behind them, or ones that were there
}

// A SurveyedPool is the state of a pool, by the kernel while it runs and by its metadata otherwise.
type SurveyedPool struct {
	Made       bool // there are metadata of a pool
	Running    bool
	Start      uint64 // of the store, when it last claimed the pool
	Mode       string // the kernel's word for what it can still do; "" if it does not run
	Writable   bool   // it takes changes, if it runs
	NeedsCheck bool
	// MetadataFull says that a running pool takes no changes until its metadata have room, and that nothing is worse.
	MetadataFull bool
	Held         bool // there is a metadata snapshot
	BlockSize    uint64
	Data         Fill
	Metadata     Fill
}

// Fill is how much there is of something, and how much of it is taken, in bytes.
type Fill struct{ Used, Total uint64 }

// Look surveys the pool of a configuration whose Backend is not open, in any process. It changes nothing and starts
// nothing; while it looks it holds the lock of the place.
func Look(ctx context.Context, c Config) (s *Survey, err error) {
	c = c.withDefaults()
	if err := c.Validate(); err != nil {
		return nil, err
	}
	control, err := dm.Open()
	if errors.Is(err, errors.ErrUnsupported) {
		control = nil // so there is no device
	} else if err != nil {
		return nil, err
	} else {
		defer func() { err = errors.Join(err, control.Close()) }()
	}
	p := c.place(control)
	defer func() { err = errors.Join(err, p.close()) }()
	s = &Survey{}
	if s.UUID, err = p.owner(ctx); err != nil {
		return nil, err
	}
	if err := s.lookAtKernel(ctx, control, c); err != nil || s.UUID == "" {
		return s, err
	}
	m, err := p.metadata()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	d, err := p.data()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	s.Unread = bounded(ctx, "read the pool's metadata", func() error {
		return stable(ctx, m, func(sb superblock) error { return s.read(ctx, m, d, sb) })
	})
	if errors.Is(s.Unread, errNoPool) {
		s.Unread = nil
	}
	if errors.Is(s.Unread, errChanging) { // that is no damage
		return nil, fmt.Errorf("%w: somebody writes to a volume, and no daemon has the pool; start lamina, and look again", s.Unread)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.tellUnread()
	return s, nil
}

// tellUnread tells what keeps the volumes from being read now from what is damage.
func (s *Survey) tellUnread() {
	for _, passing := range []error{context.DeadlineExceeded, context.Canceled, errChanging, errdefs.ErrUnavailable, errdefs.ErrResourceExhausted} {
		if errors.Is(s.Unread, passing) {
			s.Unread, s.NotRead = nil, s.Unread
			return
		}
	}
}

// lookAtKernel surveys what the kernel has of the place.
func (s *Survey) lookAtKernel(ctx context.Context, control *dm.Control, c Config) (err error) {
	if control != nil {
		err = bounded(ctx, "look at the devices", func() (err error) {
			s.Devices, err = lookAtDevices(control, c.Store)
			return err
		})
		if err == nil {
			err = bounded(ctx, "look at the pool", func() error { return s.lookAtPool(control, c.Store) })
		}
	}
	if err == nil && c.Pool == poolLoop {
		err = s.lookAtLoops(control, c)
	}
	return err
}

// lookAtPool asks the kernel for the state of the pool, if it runs.
func (s *Survey) lookAtPool(control *dm.Control, store string) error {
	name := prefix(store) + "-pool"
	info, err := control.Info(name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && (!info.ActiveTable || info.UUID != deviceUUID(store, "pool")) {
		return nil
	}
	if err != nil {
		return err
	}
	status, err := control.PoolStatus(name)
	if err != nil {
		return err
	}
	block, err := tableBlockSize(control, name)
	if err != nil {
		return err
	}
	s.Pool = SurveyedPool{
		Made: true, Running: true, Start: status.TransactionID, Mode: status.Mode.String(), NeedsCheck: status.NeedsCheck,
		Writable:     status.Mode == dm.PoolReadWrite || status.Mode == dm.PoolOutOfDataSpace,
		MetadataFull: metadataFull(status), Held: status.HeldRoot != 0, BlockSize: block,
		Data:     Fill{status.DataUsed * block, status.DataTotal * block},
		Metadata: Fill{status.MetadataUsed * metadataBlock, status.MetadataTotal * metadataBlock},
	}
	return nil
}

// tableBlockSize returns the block size of a running pool, in bytes. One that a process left without a table, as it died
// before it had loaded one, is fs.ErrNotExist: it does not run.
func tableBlockSize(control *dm.Control, name string) (uint64, error) {
	targets, err := control.Table(name)
	if err != nil {
		return 0, err
	}
	if len(targets) == 0 {
		return 0, fmt.Errorf("the pool %s has no table: %w", name, fs.ErrNotExist)
	}
	if len(targets) != 1 {
		return 0, fmt.Errorf("the pool %s has %d targets", name, len(targets))
	}
	var metadata, data string
	var sectors uint64
	if _, err := fmt.Sscan(targets[0].Params, &metadata, &data, &sectors); err != nil {
		return 0, fmt.Errorf("the table of the running pool, %q: %w", targets[0].Params, err)
	}
	return sectors * sector, nil
}

// read sets what the metadata say, in the state that a superblock or a metadata snapshot stands for.
func (s *Survey) read(ctx context.Context, metadata, data io.ReaderAt, sb superblock) error {
	if !s.Pool.Running {
		s.Pool = sb.surveyed()
	}
	volumes, err := surveyVolumes(ctx, metadata, data, sb)
	s.Volumes = volumes
	return err
}

// surveyed is what the superblock says of a pool that does not run.
func (sb superblock) surveyed() SurveyedPool {
	return SurveyedPool{
		Made: true, Start: sb.Transaction, NeedsCheck: sb.needsCheck, Held: sb.held != 0, Writable: !sb.needsCheck, BlockSize: sb.BlockSize,
		Data:     Fill{sb.data.used * sb.BlockSize, sb.data.total * sb.BlockSize},
		Metadata: Fill{sb.metadata.used * metadataBlock, sb.metadata.total * metadataBlock},
	}
}

// Survey surveys the pool that the backend has open, beside whatever else goes on.
func (b *Backend) Survey(ctx context.Context) (*Survey, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s := &Survey{UUID: b.config.Store}
	if err := s.lookAtKernel(ctx, b.control, b.config); err != nil {
		return nil, err
	}
	s.Pool.Held = false // one that a crash left goes when the next one is taken
	var volumes []SurveyedVolume
	if s.Unread = b.pool.do(ctx, func() (err error) {
		volumes, err = b.surveyVolumes(ctx)
		return err
	}, metadataSnapLock); s.Unread == nil {
		s.Volumes = volumes
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.tellUnread()
	return s, nil
}

// surveyVolumes reads the volumes of the running pool. The caller has metadataSnapLock.
func (b *Backend) surveyVolumes(ctx context.Context) (volumes []SurveyedVolume, err error) {
	data, err := b.openData()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, data.Close()) }()
	err = b.pool.readTrees(ctx, func(metadata io.ReaderAt, sb superblock) (err error) {
		volumes, err = surveyVolumes(ctx, metadata, data, sb)
		return err
	})
	return volumes, err
}

// openData opens the data of the running pool.
func (b *Backend) openData() (metadataReader, error) {
	if b.config.Pool == poolDevice {
		return openDirect(dm.Node(prefix(b.config.Store)+"-tdata"), os.O_RDONLY)
	}
	return os.Open((&loopPlace{dir: b.config.Root}).dataFile())
}

// SurveyDevice looks at a device once more, while nothing works on its volume, or on the pool: what an operation does for a
// moment is not seen. That of a volume goes by the volume's number, any other by its name. ok is false if there is none.
func (b *Backend) SurveyDevice(ctx context.Context, was SurveyedDevice) (d SurveyedDevice, ok bool, err error) {
	name, lock := was.Name, uint32(poolLock)
	if was.Role == VolumeDevice {
		name, lock = b.pool.volumeName(was.Volume), was.Volume
	}
	var found SurveyedDevice
	err = b.pool.do(ctx, func() error {
		pool, err := poolNumber(b.control, b.config.Store)
		if err != nil {
			return err
		}
		found, err = lookAtDevice(b.control, b.config.Store, name, pool)
		return err
	}, lock)
	if errors.Is(err, fs.ErrNotExist) {
		return d, false, nil
	}
	if err != nil {
		return d, false, err
	}
	return found, true, nil
}

// DropLoop takes the file from a loop device, now or at its last close.
func DropLoop(device string) error {
	err := loop{path: device}.detach()
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}
