package dmthin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// A SurveyedVolume is a volume by the pool's metadata, with what the superblock of its file system says. That is read from
// the pool's data, so the volume need not be active. What was written to a volume that is mounted may be in memory still.
type SurveyedVolume struct {
	ID      uint32
	Mapped  uint64 // bytes that have blocks, be they its own or shared
	Created uint32 // of two volumes that had the same id one after the other, both copies, the later has a higher one

	FS        string // the kind of file system, "" if it is none that is known
	FSSize    uint64 // bytes
	FSErrors  bool   // it has noted damage
	FSProblem error  // why nothing is known of it
	// Unreadable says that the FSProblem is one of the disk below the pool's data.
	Unreadable bool
}

var (
	// errUnmapped is returned for a volume to whose begin nothing was written.
	errUnmapped = errors.New("nothing has been written to it")

	// errData is returned for a volume whose begin the disk does not give; the metadata say where it is.
	errData = errors.New("its begin cannot be read")
)

func surveyVolumes(ctx context.Context, metadata, data io.ReaderAt, sb superblock) ([]SurveyedVolume, error) {
	metadata = newNodeCache(metadata)
	details, err := readDetails(ctx, metadata, sb)
	if err != nil {
		return nil, err
	}
	adviseRandom(data)
	volumes := make([]SurveyedVolume, len(details))
	for i, d := range details {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		v := SurveyedVolume{ID: d.ID, Mapped: d.Mapped * sb.BlockSize, Created: d.Created}
		head, err := readVolumeHead(metadata, data, sb, d.ID)
		v.Unreadable = errors.Is(err, errData)
		if err != nil && !errors.Is(err, errUnmapped) && !v.Unreadable {
			return nil, err
		}
		if err == nil {
			err = v.setFilesystem(head)
		}
		v.FSProblem = err
		volumes[i] = v
	}
	return volumes, nil
}

func (v *SurveyedVolume) setFilesystem(head []byte) error {
	kind, state, err := parseHead(head)
	if err != nil {
		return err
	}
	v.FS, v.FSSize, v.FSErrors = kind.String(), state.blocks*state.blockSize, state.errors
	return nil
}

// readVolumeHead reads the first bytes of a volume from the pool's data.
func readVolumeHead(metadata, data io.ReaderAt, sb superblock, id uint32) ([]byte, error) {
	root, ok, err := find(metadata, sb.mapping, uint64(id))
	if err == nil && !ok {
		err = fmt.Errorf("volume %d is in the pool's tree of volumes, and has no tree of blocks", id)
	}
	if err != nil {
		return nil, err
	}
	mapping, ok, err := find(metadata, root, 0)
	if err != nil {
		return nil, fmt.Errorf("volume %d: %w", id, err)
	}
	if !ok {
		return nil, errUnmapped
	}
	block := mapping >> timeBits
	if block >= sb.data.total {
		return nil, fmt.Errorf("volume %d has block %d of the data, which has %d", id, block, sb.data.total)
	}
	head := make([]byte, fsHeadSize)
	if _, err := data.ReadAt(head, int64(block*sb.BlockSize)); err != nil {
		return nil, fmt.Errorf("volume %d: %w: %w", id, errData, err)
	}
	return head, nil
}

// adviseRandom tells the kernel to read no more of a file than is asked for.
func adviseRandom(r io.ReaderAt) {
	if f, ok := r.(*os.File); ok {
		_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM) // it is faster with it, and no more
	}
}

// maxCached bounds a nodeCache, in blocks.
const maxCached = 8192

// A nodeCache reads each block once, unless there are many.
type nodeCache struct {
	metadata io.ReaderAt
	nodes    map[int64][]byte
}

func newNodeCache(metadata io.ReaderAt) *nodeCache {
	return &nodeCache{metadata: metadata, nodes: map[int64][]byte{}}
}

func (c *nodeCache) ReadAt(b []byte, offset int64) (int, error) {
	if node := c.nodes[offset]; len(node) == len(b) {
		return copy(b, node), nil
	}
	n, err := c.metadata.ReadAt(b, offset)
	if err != nil {
		return n, err
	}
	if len(c.nodes) >= maxCached {
		clear(c.nodes)
	}
	c.nodes[offset] = append([]byte(nil), b...)
	return n, nil
}
