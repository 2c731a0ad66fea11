package dmthin

import (
	"context"
	"errors"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
)

// removeStaleNodes removes the nodes of volumes that have no device: a process that was killed left them, and nobody else keeps
// them (udevCookie in internal/dm).
func (p *Pool) removeStaleNodes(ctx context.Context) error {
	nodes, err := filepath.Glob(dm.Node(p.prefix) + "-*")
	if err != nil {
		return err
	}
	var errs []error
	for _, node := range nodes {
		if id, ok := p.volumeOf(filepath.Base(node)); ok {
			errs = append(errs, p.do(ctx, func() error { return p.removeStaleNode(id) }, id))
		}
	}
	return errors.Join(errs...)
}

func (p *Pool) removeStaleNode(id uint32) error {
	if _, err := p.control.Info(p.volumeName(id)); !errors.Is(err, unix.ENXIO) {
		return err
	}
	return p.control.RemoveNode(p.volumeName(id))
}

// volumeOf returns the volume that a device has the name of.
func (p *Pool) volumeOf(device string) (id uint32, ok bool) {
	text, ok := strings.CutPrefix(device, p.prefix+"-")
	n, err := strconv.ParseUint(text, 10, 24)
	return uint32(n), ok && err == nil && number(uint32(n)) == text
}
