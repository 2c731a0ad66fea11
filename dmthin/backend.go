package dmthin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
)

// stopTime bounds what Close waits for the kernel.
const stopTime = 10 * time.Second

// Content is a content as the snapshotter knows it: the id of a volume and its size in bytes. Volumes have no project.
type Content = struct {
	ID, Size uint64
	Project  uint32
}

// A Backend keeps contents as volumes of a pool of its own. Its methods may be called from several goroutines at once;
// Owner and the first Claim come before all others.
type Backend struct {
	config  Config
	control *dm.Control
	place   place
	pool    *Pool  // nil until the first Claim
	watch   *watch // of the pool
	history history

	memory
	mapsIDs sync.Map    // the names of file systems of which it was found
	slow    atomic.Bool // it was said that comparing is slow

	trimming trimming

	stop func() error // shutDown, once
}

// Open looks at the configuration and at what the kernel has. It makes the directory Config.Root if it is missing, and
// resumes volumes that a process left suspended when it died, for who uses one hangs; it starts nothing. A kernel without
// device mapper is an error that says so.
func Open(ctx context.Context, c Config) (*Backend, error) {
	c = c.withDefaults()
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	control, err := dm.Open()
	if err != nil {
		return nil, fmt.Errorf("the thin backend needs device mapper in the kernel: %w", err)
	}
	err = os.MkdirAll(c.Root, 0o700)
	if err == nil {
		err = bounded(ctx, "resume devices", func() error { return resumeAll(control, prefix(c.Store), c.Store) })
	}
	if err != nil {
		return nil, errors.Join(err, control.Close())
	}
	b := &Backend{config: c, control: control, place: c.place(control)}
	b.stop = sync.OnceValue(b.shutDown)
	return b, nil
}

// place returns the place of the pool.
func (c Config) place(control *dm.Control) place {
	if c.Pool == poolDevice {
		return &devicePlace{
			control: control, paths: c.Devices, force: c.Force, files: c.Root,
			metadataSize: uint64(c.MetadataSize), blockSize: uint64(c.BlockSize),
		}
	}
	return &loopPlace{
		dir: c.Root, dataSize: uint64(c.DataSize), maxSize: uint64(c.MaxSize),
		metadataSize: uint64(c.MetadataSize), blockSize: uint64(c.BlockSize), share: c.HostShare,
	}
}

// shared returns the place of the pool to be looked at alone, whoever has locked it.
func (c Config) shared(control *dm.Control) place {
	p := c.place(control)
	switch p := p.(type) {
	case *loopPlace:
		p.shared = true
	case *devicePlace:
		p.shared = true
	}
	return p
}

// prefix begins the names of a store's devices. Their uuids have the whole uuid of the store.
func prefix(uuid string) string { return "lamina-" + uuid[:min(8, len(uuid))] }

// Owner returns the uuid of the store that the pool belongs to, and the pool's transaction id, which is the start at which
// that store last claimed it. A place whose pool has never run is as good as new.
func (b *Backend) Owner(ctx context.Context) (uuid string, start uint64, err error) {
	if err := ctx.Err(); err != nil {
		return "", 0, err
	}
	uuid, err = b.place.owner(ctx)
	if b.config.Force && uuid != b.config.Store { // what lies there, be it an error, is lost with the Claim
		return "", 0, nil
	}
	if err != nil || uuid == "" {
		return "", 0, err
	}
	start, err = b.transaction(ctx, uuid)
	if errors.Is(err, errNoPool) {
		return "", 0, nil
	}
	return uuid, start, err
}

// transaction returns the transaction id of the pool, whether it runs or not. One that has failed does not tell, and writes no
// metadata either.
func (b *Backend) transaction(ctx context.Context, uuid string) (uint64, error) {
	name := prefix(uuid) + "-pool"
	info, err := b.control.Info(name)
	if err == nil && info.ActiveTable && info.UUID == deviceUUID(uuid, "pool") {
		var status dm.PoolStatus
		if err := bounded(ctx, name, func() (err error) {
			status, err = b.control.PoolStatus(name)
			return err
		}); err != nil {
			return 0, err
		}
		if status.Mode != dm.PoolFailed && status.Mode != dm.PoolError {
			return status.TransactionID, nil
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	sb, err := b.superblock()
	return sb.Transaction, err
}

// superblock reads that of a pool that does not run.
func (b *Backend) superblock() (superblock, error) {
	m, err := b.place.metadata()
	if err != nil {
		return superblock{}, err
	}
	sb, err := readSuperblock(m)
	if errors.Is(err, errDamaged) || errors.Is(err, errForeign) {
		err = fmt.Errorf("the metadata of the pool: %w: %w: %s", err, errPoolState, repairAdvice)
	}
	return sb, errors.Join(err, m.Close())
}

// Claim starts the pool, and makes it if there is none, and sets its transaction id.
//
// A power cut leaves a place without a pool, which Owner calls new, or a pool with an older transaction id.
func (b *Backend) Claim(ctx context.Context, uuid string, start uint64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if b.pool == nil {
		pool, err := b.start(ctx, uuid)
		if err != nil {
			return err
		}
		b.pool = pool
		b.watch = b.startWatch(ctx)
	}
	return b.pool.Claim(ctx, start)
}

func (b *Backend) start(ctx context.Context, uuid string) (*Pool, error) {
	if err := b.place.make(ctx, uuid); err != nil {
		return nil, err
	}
	devices, err := b.place.attach(ctx, prefix(uuid))
	if err != nil {
		return nil, err
	}
	pool, err := b.startOn(ctx, uuid, devices)
	if err != nil {
		return nil, errors.Join(err, b.abandon(ctx, uuid))
	}
	return pool, nil
}

// abandon takes the devices of a pool that could not be started away again, or they would be in the way of who repairs it.
// Those of a pool that runs stay.
func (b *Backend) abandon(ctx context.Context, uuid string) error {
	_, err := b.control.Info(prefix(uuid) + "-pool")
	if errors.Is(err, fs.ErrNotExist) {
		return b.place.detach(context.WithoutCancel(ctx))
	}
	return err
}

// startOn starts the pool on its devices.
func (b *Backend) startOn(ctx context.Context, uuid string, devices poolDevices) (*Pool, error) {
	block, err := b.blockSize(uuid)
	if err != nil {
		return nil, err
	}
	if block != uint64(b.config.BlockSize) {
		log.G(ctx).Warnf("the pool has blocks of %v and keeps them; thin.block_size is for a new pool", Size(block))
	}
	pool, err := startPool(ctx, b.control, poolSettings{
		prefix: prefix(uuid), uuid: uuid,
		metadata: devices.metadata, data: devices.data, metadataPath: devices.metadataPath,
		size: devices.size / block * block, block: block, lowWater: lowWater(devices.size),
		discard: b.config.Discard == on, zeroing: b.config.Zeroing == on,
	})
	if err != nil {
		return nil, err
	}
	if err := removeIfThere(repairedFile(b.config.Root)); err != nil {
		log.G(ctx).WithError(err).Warn("what a repair of the pool has left is in the way of the next repair: remove it")
	}
	log.G(ctx).WithFields(log.Fields{
		"pool": pool.name, "size": Size(devices.size).String(), "block": Size(block).String(),
	}).Info("opened the thin backend")
	return pool, nil
}

// blockSize returns that of the pool that there is, or the one of the configuration, in bytes.
func (b *Backend) blockSize(uuid string) (uint64, error) {
	size, err := tableBlockSize(b.control, prefix(uuid)+"-pool")
	if !errors.Is(err, fs.ErrNotExist) {
		return size, err
	}
	sb, err := b.superblock()
	if errors.Is(err, errNoPool) {
		return uint64(b.config.BlockSize), nil
	}
	return sb.BlockSize, err
}

// List returns the ids of all volumes in the pool.
func (b *Backend) List(ctx context.Context) ([]uint64, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	volumes, err := b.pool.Volumes(ctx)
	if err != nil {
		return nil, err
	}
	ids := make([]uint64, len(volumes))
	for i, v := range volumes {
		ids[i] = uint64(v.ID)
	}
	return ids, nil
}

// Close takes away the devices of volumes that nobody has open, and of the pool if none is left. What is in use stays: the
// next start finds it.
func (b *Backend) Close() error { return b.stop() }

func (b *Backend) shutDown() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTime)
	defer cancel()
	err := b.stopPool(ctx)
	if ctx.Err() != nil {
		// Something of ours still works on the place, whose lock says that it is ours; it goes with the process.
		return errors.Join(err, context.Cause(ctx))
	}
	return errors.Join(err, b.place.close(), b.control.Close())
}

func (b *Backend) stopPool(ctx context.Context) error {
	if b.pool == nil {
		return nil
	}
	b.watch.stop(ctx)
	stopped, err := b.pool.Stop(ctx)
	if err != nil {
		return err
	}
	if !stopped {
		log.G(ctx).WithField("pool", b.pool.name).Info("volumes are in use; they stay, and the pool with them")
		return nil
	}
	return b.place.detach(ctx)
}

// volumeID returns the id of a content as the kernel takes it.
func volumeID(id uint64) (uint32, error) {
	if id > dm.MaxThinID {
		return 0, fmt.Errorf("volume %d: %w: the kernel takes ids up to %d", id, unix.EINVAL, dm.MaxThinID)
	}
	return uint32(id), nil
}
