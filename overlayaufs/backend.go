package overlayaufs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/internal/space"
)

// Names in the root beside the contents, which are decimal numbers, and in a content.
const (
	emptyName = "empty" // an empty tree, to be mounted as such

	fsName      = "fs"       // what the layer holds
	newName     = "fs.new"   // fs, while it is being made
	workName    = "work"     // overlayfs's own
	bootName    = "boot"     // see claimBoot
	bootNewName = "boot.new" // boot, while it is being made
	idsName     = "ids"      // see markIDs
)

// Content is a content as the snapshotter knows it: its number, a size, which a directory does not have, and a project id,
// 0 for none.
type Content = struct {
	ID, Size uint64
	Project  uint32
}

// probeTimeout bounds what Open tries, which takes milliseconds unless the disk hangs.
const probeTimeout = time.Minute

// A Backend keeps contents in the directory Config.Root. Its methods may be called from several goroutines at once.
type Backend struct {
	root     string
	config   Config
	dir      *os.File // root, held for the file system behind it
	overlay  overlay
	aufs     *aufs // nil where overlayfs mounts the layers
	volatile bool
	written  *flusher // syncs the file system of the root
	flusher  *flusher // the same; nil if commits are not synced
	bootID   func() (string, error)
	projects projects
	walks    walks
	mapsIDs  atomic.Bool // has been found

	spares    spares
	fresh     sync.Map           // the ids of contents that Make has just made and nobody has mounted; without an id map
	restoring singleflight.Group // of contents that Mounts makes again, by id
	claimed   sync.Map           // the ids of volatile contents that claimBoot was called for
	hidden    sync.Once          // has been said
	unseen    string             // what it means then, if it is not what it means to a deletion
}

// Open makes the directory cfg.Root if it is missing, and finds out what its file system and this kernel can do by
// trying it there. It leaves no mount behind, even if it is killed. A setting that cannot be had is an error that names
// it; so is a directory that holds something that is not ours, as Owner describes.
func Open(ctx context.Context, cfg Config) (*Backend, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if err := cfg.checkRoot(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("open union root %s: %w", cfg.Root, err)
	}
	if err := os.MkdirAll(cfg.Root, 0o700); err != nil {
		return nil, err
	}
	// Before anything is written: the probe must not touch what is not ours.
	was, err := readOwner(cfg.Root)
	if err == nil {
		err = was.checkSettled(cfg.Root)
	}
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	b, err := newBackend(cfg)
	if err != nil {
		return nil, err
	}
	if err := b.find(ctx, cfg, was); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	if err := b.findProjects(cfg); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

// find finds out how to mount the layers of a place, which its owner has said how they were written.
func (b *Backend) find(ctx context.Context, cfg Config, was owner) error {
	ids, err := b.List(ctx)
	if err != nil {
		return err
	}
	if len(ids) > 0 {
		if cfg, err = cfg.forLayers(was.Form); err != nil {
			return err
		}
	}
	found, err := probe(ctx, cfg)
	if errors.Is(err, unix.ENOSPC) && b.giveUpReserve(ctx) {
		found, err = probe(ctx, cfg)
	}
	if err != nil {
		return space.Explain(err, b.root)
	}
	b.overlay, b.aufs = overlay{options: found.options}, found.aufs
	if len(ids) > 0 && b.form() == formOverlay {
		return was.checkForm(cfg.Root, found.options)
	}
	return nil
}

// newBackend returns a backend on the existing directory cfg.Root, with no overlay options yet.
func newBackend(cfg Config) (*Backend, error) {
	root := filepath.Clean(cfg.Root)
	dir, err := os.Open(root)
	if err != nil {
		return nil, err
	}
	b := &Backend{
		root:     root,
		config:   cfg,
		dir:      dir,
		volatile: cfg.Volatile == on,
		bootID:   kernelBootID,
	}
	b.written = newFlusher(b.syncfs)
	if cfg.Sync != off {
		b.flusher = b.written
	}
	return b, nil
}

// Driver returns "overlay" or "aufs": what mounts the layers.
func (b *Backend) Driver() string { return b.form().String() }

// Options returns the options that were found and are used in every mount, for the log.
func (b *Backend) Options() []string {
	if b.aufs != nil {
		return b.aufs.common()
	}
	options := slices.Clone(b.overlay.options)
	if b.volatile {
		options = append(options, "volatile")
	}
	return options
}

// Close lets go of the root. It may be called more than once.
func (b *Backend) Close() error {
	err := b.stopSpares()
	if closeErr := b.dir.Close(); !errors.Is(closeErr, os.ErrClosed) {
		err = errors.Join(err, closeErr)
	}
	return err
}

// path returns the path of content id, or of something in it.
func (b *Backend) path(id uint64, name ...string) string {
	return filepath.Join(b.root, strconv.FormatUint(id, 10), filepath.Join(name...))
}

// onRoot calls fn with a descriptor of the root, which stays open meanwhile even if the backend is closed.
func (b *Backend) onRoot(op string, fn func(fd int) error) error {
	conn, err := b.dir.SyscallConn()
	if err != nil {
		return &os.PathError{Op: op, Path: b.root, Err: err}
	}
	var fnErr error
	if err := conn.Control(func(fd uintptr) { fnErr = fn(int(fd)) }); err != nil {
		return &os.PathError{Op: op, Path: b.root, Err: err}
	}
	return fnErr
}

// syncfs writes everything in the root's file system to the disk.
//
// The descriptor is the one held since Open: the kernel reports an error of writing back once to each descriptor that
// was open when it happened (since Linux 5.8).
func (b *Backend) syncfs() error {
	return b.onRoot("syncfs", func(fd int) error {
		if err := unix.Syncfs(fd); err != nil {
			return &os.PathError{Op: "syncfs", Path: b.root, Err: err}
		}
		return nil
	})
}
