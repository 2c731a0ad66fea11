package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/lamina-snapshotter/lamina/integration/image"
)

const (
	imageLayers = 10       // of the image: a busybox below, and then files in each
	imageSize   = 10 << 10 // of a file

	// sideBySide is how many layers are unpacked at once.
	sideBySide = 4

	laminaSyncOff = laminaName + ", sync off"

	opUnpack = "unpack, one layer after the other"
	opRun    = "container create to first output"

	unpackTarget = 1.0 / 3 // of devmapper's time
)

var opUnpackAtOnce = fmt.Sprintf("unpack, %d layers at once", sideBySide)

// images are how long containerd takes for an image, and for a container of it.
type images results

func (r images) table(w io.Writer) error { return results(r).table(w) }

func (r images) targets(s settings) (all []target) {
	if s.backend == thin {
		results(r).aim(&all, opUnpack+", beside "+devMapper, unpackTarget, opUnpack, devMapper, opUnpack)
	}
	return all
}

// checkImages says what is missing.
func (s settings) checkImages() error {
	for name, how := range map[string]string{
		filepath.Join(s.tools, "containerd"):              "integration/setup tools",
		filepath.Join(s.tools, "ctr"):                     "integration/setup tools",
		filepath.Join(s.tools, "containerd-shim-runc-v2"): "integration/setup tools",
		s.busybox: "integration/setup image",
	} {
		if _, err := os.Stat(name); err != nil {
			return fmt.Errorf("part %s: `%s` makes what is missing: %w", partImages, how, err)
		}
	}
	if _, err := exec.LookPath("runc"); err != nil {
		return fmt.Errorf("part %s: `integration/setup packages` installs what is missing: %w", partImages, err)
	}
	return nil
}

// An imagePeer is a snapshotter of the containerd that unpacks.
type imagePeer struct {
	name   string // in the report
	id     string // containerd's name for it
	config string // what it is told of it
	close  func() error
}

// measureImages has one containerd unpack an image with each snapshotter, and run containers.
func measureImages(ctx context.Context, s settings, dir string) (_ section, err error) {
	busybox, err := os.ReadFile(s.busybox)
	if err != nil {
		return nil, err
	}
	var archive bytes.Buffer
	if err := image.Layered(&archive, busybox, imageLayers, s.scale.imageFiles, imageSize); err != nil {
		return nil, err
	}
	name, closeServer, err := serveImage(ctx, archive.Bytes())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closeServer()) }()
	peers, err := openImagePeers(ctx, s, dir)
	defer func() {
		for _, p := range peers {
			err = errors.Join(err, p.close())
		}
	}()
	if err != nil {
		return nil, err
	}
	m := newMeasurement(s)
	for _, atOnce := range []int{1, sideBySide} {
		if atOnce > 1 && s.backend == thin {
			continue // neither can: a volume is a snapshot of that of the layer below
		}
		if err := m.images(ctx, dir, name, peers, atOnce); err != nil {
			return nil, err
		}
	}
	return images(m.results()), nil
}

// images starts containerd, and measures all of what it can do in that way.
func (m *measurement) images(ctx context.Context, dir, name string, peers []*imagePeer, atOnce int) (err error) {
	var config strings.Builder
	var ids []string
	for _, p := range peers {
		config.WriteString(p.config)
		ids = append(ids, p.id)
	}
	n, err := startNode(ctx, dir, m.tools, config.String(), ids, atOnce)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.stop(ctx)) }()
	for round := range max(m.scale.unpacks, m.scale.runs) + 1 {
		m.rand.Shuffle(len(peers), func(i, j int) { peers[i], peers[j] = peers[j], peers[i] })
		for _, p := range peers {
			if err := m.image(ctx, n, name, p, round, atOnce); err != nil {
				return fmt.Errorf("%s: %w", p.name, errors.Join(err, n.tail()))
			}
		}
		_, _ = fmt.Fprintf(m.progress, "images: round %d of %d, %d layers at once\n", round, m.scale.unpacks, atOnce)
	}
	return nil
}

// image unpacks it, runs a container where layers were unpacked in turn, and removes it. The first round warms up, and fetches.
func (m *measurement) image(ctx context.Context, n *node, name string, p *imagePeer, round, atOnce int) (err error) {
	udev := &peer{kind: kinds[p.id], dir: n.dir}
	end, err := udev.turn(ctx, m.settings)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	if err := syncDisk(n.dir); err != nil {
		return err
	}
	took, parallel, err := n.pull(ctx, name, p.id)
	if err != nil {
		return err
	}
	op := opUnpack
	if atOnce > 1 {
		op = opUnpackAtOnce
	}
	if parallel != (atOnce > 1) {
		return fmt.Errorf("containerd was to unpack %d layers at once, and says %v", atOnce, parallel)
	}
	of := &peer{name: p.name}
	if round > 0 {
		m.add(op, of, took)
	}
	if atOnce == 1 {
		if err := syncDisk(n.dir); err != nil {
			return err
		}
		took, err := n.run(ctx, name, p.id, fmt.Sprintf("hello-%d-%s", round, p.id))
		if err != nil {
			return err
		}
		if round > 0 {
			m.add(opRun, of, took)
		}
	}
	return n.forget(ctx, p.id)
}

// openImagePeers starts the Laminas, and makes the pool that devmapper needs. Those that could be opened are returned also if
// one could not.
func openImagePeers(ctx context.Context, s settings, dir string) (peers []*imagePeer, err error) {
	add := func(name, id, backend, more string) {
		if err != nil {
			return
		}
		own := filepath.Join(dir, id)
		var d *daemon
		if err = os.Mkdir(own, 0o700); err == nil {
			d, err = newDaemon(s.lamina, own, id, backend, more)
		}
		if err == nil {
			err = d.start(ctx)
		}
		if err != nil {
			return
		}
		config := fmt.Sprintf("[proxy_plugins.%s]\n  type = \"snapshot\"\n  address = %q\n", id, d.socket())
		if backend == union {
			config += "  capabilities = [\"rebase\"]\n"
		}
		peers = append(peers, &imagePeer{name, id, config, d.stop})
	}
	add(laminaName, "lamina", s.backend, "")
	if s.backend == union {
		add(laminaSyncOff, "lamina-off", union, syncOff)
		return append(peers, &imagePeer{overlayfs, overlayfs, "", func() error { return nil }}), err
	}
	add(laminaUnion, "lamina-union", union, "")
	if err != nil {
		return peers, err
	}
	pool, remove, err := makePool(ctx, dir)
	if err != nil {
		return peers, err
	}
	config := fmt.Sprintf("[plugins.\"io.containerd.snapshotter.v1.devmapper\"]\n  pool_name = %q\n  root_path = %q\n  base_image_size = %q\n  fs_type = \"ext4\"\n",
		pool, filepath.Join(dir, "devmapper"), volumeSize)
	return append(peers, &imagePeer{devMapper, devMapper, config, remove}), nil
}
