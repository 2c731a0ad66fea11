package dmthin

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/lamina-snapshotter/lamina/internal/failpoint"
)

const thinTools = "thin-provisioning-tools" // the Debian package

// A Repair is what RepairMetadata has done.
type Repair struct {
	// Kept is the file with the metadata as they were before they were replaced; "" if they were whole.
	Kept string `json:"kept,omitempty"`

	// Cleared says that the metadata were found whole, and that the pool may be written again.
	Cleared bool `json:"cleared"`

	// Volumes is how many volumes the pool has now. Lost are those that it had before and has no more, if that can be told.
	Volumes int      `json:"volumes"`
	Lost    []uint32 `json:"lost,omitempty"`
}

// RepairMetadata has thin_check look at the metadata of a pool that nobody uses. If they are whole it lets the kernel write
// them again; if not, it replaces them by what thin_repair makes of them, and keeps the old ones in a file in Config.Root. start
// is the store's count of starts, for a pool whose own is lost.
//
// A kill or a power cut at any moment leaves the metadata as they were, or repaired, or such that the pool is refused and the
// next call goes on: see replaceRegion.
func RepairMetadata(ctx context.Context, c Config, start uint64) (_ Repair, err error) {
	b, uuid, err := openPlace(ctx, c)
	if err != nil {
		return Repair{}, err
	}
	defer func() { err = errors.Join(err, b.place.close(), b.control.Close()) }()
	if err := b.endPool(ctx, uuid); err != nil {
		return Repair{}, err
	}
	subject, err := b.place.repairable(ctx)
	if err != nil {
		return Repair{}, err
	}
	r := repairing{dir: b.config.Root, metadata: subject, block: uint64(b.config.BlockSize), start: start}
	return r.run(ctx)
}

// endPool stops a pool that still runs, unless somebody uses it.
func (b *Backend) endPool(ctx context.Context, uuid string) error {
	p := &Pool{control: b.control, name: prefix(uuid) + "-pool", prefix: prefix(uuid), uuid: uuid, locks: map[uint32]*volumeLock{}}
	info, err := p.own(p.name, "pool")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	stopped, err := p.Stop(ctx)
	if err == nil && !stopped {
		err = fmt.Errorf("%s is in use by %d devices: unmount its volumes first", p.name, info.OpenCount)
	}
	return err
}

// repairable is where metadata lie that are to be repaired.
type repairable interface {
	// file returns a file with the metadata, to be read. It may be a copy.
	file(ctx context.Context) (path string, err error)

	// dataSize returns how many bytes there are for the data.
	dataSize() (uint64, error)

	// replace puts the metadata in a file in place of the old ones, and keeps these in another one.
	replace(ctx context.Context, with, keep string) error

	// writeSuperblock replaces the first block.
	writeSuperblock(b []byte) error

	// unfinished returns the metadata of a replace that was cut short, or "".
	unfinished() string
}

// A repairing is one RepairMetadata.
type repairing struct {
	dir      string
	metadata repairable
	block    uint64 // bytes, of a pool whose superblock is lost
	start    uint64
}

func (r repairing) run(ctx context.Context) (Repair, error) {
	if path := r.metadata.unfinished(); path != "" {
		keep, err := r.keep()
		if err == nil {
			err = r.metadata.replace(ctx, path, keep)
		}
		if err != nil {
			return Repair{}, fmt.Errorf("go on with a repair that was cut short: %w", err)
		}
	}
	path, err := r.metadata.file(ctx)
	if err != nil {
		return Repair{}, err
	}
	before, beforeErr := describeMetadata(ctx, path)
	err = runProgram(ctx, "thin_check", thinTools, nil, path)
	var damage *programError
	switch {
	case err == nil && beforeErr == nil:
		return r.clear(path, before)
	case err == nil:
		return Repair{}, beforeErr
	case !errors.As(err, &damage):
		return Repair{}, err
	}
	repaired := filepath.Join(r.dir, "metadata.new")
	after, err := r.rebuild(ctx, path, repaired, before)
	if err != nil {
		return Repair{}, errors.Join(err, removeIfThere(repaired))
	}
	failpoint.Hit("repair.rebuilt")
	result := Repair{Volumes: len(after.volumes), Lost: before.missingIn(after)}
	if result.Kept, err = r.keep(); err != nil {
		return Repair{}, err
	}
	return result, r.metadata.replace(ctx, repaired, result.Kept)
}

// clear lets the kernel write metadata that are whole.
func (r repairing) clear(path string, m described) (Repair, error) {
	result := Repair{Volumes: len(m.volumes), Cleared: m.needsCheck}
	if !m.needsCheck {
		return result, nil
	}
	b, err := readFirstBlock(path)
	if err != nil {
		return Repair{}, err
	}
	clearNeedsCheck(b)
	failpoint.Hit("repair.clear")
	err = r.metadata.writeSuperblock(b)
	failpoint.Hit("repair.cleared")
	return result, err
}

// rebuild has thin_repair write new metadata, and checks them.
func (r repairing) rebuild(ctx context.Context, from, to string, before described) (described, error) {
	info, err := os.Stat(from)
	if err == nil {
		err = errors.Join(removeIfThere(to), makeAllocated(to, uint64(info.Size())))
	}
	if err != nil {
		return described{}, err
	}
	args := []string{"-i", from, "-o", to}
	want := before.superblock
	if want == (superblock{}) { // it is lost
		data, block, err := r.lost(from)
		if err != nil {
			return described{}, err
		}
		want = superblock{Transaction: r.start, BlockSize: block}
		args = append(args, "--transaction-id", fmt.Sprint(r.start),
			"--data-block-size", fmt.Sprint(block/sector), "--nr-data-blocks", fmt.Sprint(data/block))
	}
	if err := runProgram(ctx, "thin_repair", thinTools, nil, args...); err != nil {
		return described{}, err
	}
	if err := runProgram(ctx, "thin_check", thinTools, nil, to); err != nil {
		return described{}, fmt.Errorf("what thin_repair has written: %w", err)
	}
	if err := clearFlag(to); err != nil { // thin_repair keeps it
		return described{}, err
	}
	after, err := describeMetadata(ctx, to)
	if err == nil && (after.Transaction != want.Transaction || after.BlockSize != want.BlockSize || after.needsCheck) {
		err = fmt.Errorf("thin_repair has written a pool of the start %d with blocks of %d bytes (needs a check: %t), and it had %d and %d",
			after.Transaction, after.BlockSize, after.needsCheck, want.Transaction, want.BlockSize)
	}
	return after, err
}

// lost returns what a superblock that is damaged should say of the data: how long they are and how large a block is, in bytes.
// The size of a block is mostly still there; a wrong one would be another pool.
func (r repairing) lost(path string) (data, block uint64, err error) {
	b, err := readFirstBlock(path)
	if err != nil {
		return 0, 0, err
	}
	block = uint64(binary.LittleEndian.Uint32(b[offsetBlockSize:])) * sector
	if block < minBlock || block > maxBlock || block%minBlock != 0 {
		block = r.block
	}
	data, err = r.metadata.dataSize()
	return data, block, err
}

// keep returns the name of a file that is not there yet.
func (r repairing) keep() (string, error) {
	for i := 1; ; i++ {
		path := filepath.Join(r.dir, fmt.Sprintf("metadata.damaged-%d", i))
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			return path, nil
		} else if err != nil {
			return "", err
		}
	}
}

// described is what metadata say, as far as they can be read.
type described struct {
	superblock
	volumes []volumeDetails // nil if the btree of volumes is damaged
}

// describeMetadata reads metadata in a file. Volumes that cannot be read are no error.
func describeMetadata(ctx context.Context, path string) (d described, err error) {
	f, err := os.Open(path)
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if d.superblock, err = readSuperblock(f); err != nil {
		return described{}, err
	}
	d.volumes, _ = readDetails(ctx, f, d.superblock)
	return d, ctx.Err()
}

// missingIn returns the volumes that other does not have.
func (d described) missingIn(other described) (ids []uint32) {
	has := map[uint32]bool{}
	for _, v := range other.volumes {
		has[v.ID] = true
	}
	for _, v := range d.volumes {
		if !has[v.ID] {
			ids = append(ids, v.ID)
		}
	}
	return ids
}

// clearFlag is clearNeedsCheck for metadata in a file.
func clearFlag(path string) error {
	b, err := readFirstBlock(path)
	if err != nil {
		return err
	}
	clearNeedsCheck(b)
	return writeFirstBlock(path, b)
}

// writeFirstBlock replaces the first block of metadata in a file, durably.
func writeFirstBlock(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, 0)
	return errors.Join(err, f.Sync(), f.Close())
}

// readFirstBlock reads the first block of metadata.
func readFirstBlock(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	b := make([]byte, superblockSize)
	_, err = io.ReadFull(f, b)
	return b, errors.Join(err, f.Close())
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
