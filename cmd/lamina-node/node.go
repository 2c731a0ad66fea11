package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/pelletier/go-toml/v2"
)

// Where things are on the node.
const (
	program        = "/opt/lamina/bin/lamina"
	units          = "/etc/systemd/system"
	laminaConfig   = "/etc/lamina/config.toml"
	containerdMain = "/etc/containerd/config.toml"
	containerdConf = "/etc/containerd/conf.d"

	// The files whose content is a digest of those that a service was last restarted for, or must not be again.
	servedWith     = "/opt/lamina/served-with"
	containerdWith = "/opt/lamina/containerd-with"
	refusedWith    = "/opt/lamina/containerd-refused"
	// accepted has the files for containerd with which it last served the kubelet.
	accepted = "/opt/lamina/accepted"
)

// The units.
const (
	laminaUnit     = "lamina.service"
	printUnit      = "lamina-containerd.service"
	containerdUnit = "containerd.service"
)

// The files that tell containerd of Lamina: the first is what printUnit makes.
var containerdFiles = []string{
	filepath.Join(containerdConf, "lamina.toml"),
	filepath.Join(containerdConf, "lamina-cri.toml"),
	filepath.Join(containerdConf, "lamina-systemd.toml"),
}

// laminaDropIn runs the program where an image can put it: /usr may be read-only.
const laminaDropIn = "[Service]\n" +
	"ExecStart=\n" + // or there would be two
	"ExecStart=" + program + " serve\n"

// printUnitText says anew at each boot what the kernel can do: a newer one may know more. containerd, which starts after it, reads
// no name that ends so, and thus no file that is not whole.
const printUnitText = `[Unit]
Description=Tell containerd how Lamina is reached and what it can do
After=local-fs.target
Before=containerd.service
RequiresMountsFor=/var/lib/lamina

[Service]
Type=oneshot
ExecStart=/bin/sh -c '` + program + ` config containerd >lamina.toml.new && mv lamina.toml.new lamina.toml'
WorkingDirectory=` + containerdConf + `

[Install]
WantedBy=multi-user.target
`

// A node is the one that this process runs on.
type node struct {
	image, config string
	out           io.Writer
	systemd       *systemd
}

func (n *node) say(format string, args ...any) { _, _ = fmt.Fprintf(n.out, format+"\n", args...) }

// within does something with a bound, and with systemd.
func (n *node) within(ctx context.Context, do func(*node, context.Context) error) (err error) {
	ctx, cancel := context.WithTimeout(ctx, jobTimeout)
	defer cancel()
	if n.systemd, err = connect(ctx); err != nil {
		return err
	}
	defer n.systemd.close()
	return do(n, ctx)
}

func (n *node) install(ctx context.Context) error {
	if err := errors.Join(n.refusePackage(ctx), refuseImports()); err != nil {
		return err
	}
	if err := n.installLamina(ctx); err != nil {
		return err
	}
	return n.installContainerd(ctx)
}

// installLamina leaves a daemon that runs with what is installed. Containers go on while it is restarted.
func (n *node) installLamina(ctx context.Context) error {
	served := []file{
		{to: program, from: filepath.Join(n.image, "lamina"), mode: 0o755},
		{to: filepath.Join(units, laminaUnit), from: filepath.Join(n.image, laminaUnit)},
		{to: filepath.Join(units, laminaUnit+".d", "node.conf"), text: laminaDropIn},
		{to: laminaConfig, from: filepath.Join(n.config, "config.toml")},
	}
	if err := errors.Join(putAll(served), put(file{to: filepath.Join(units, printUnit), text: printUnitText})); err != nil {
		return err
	}
	if err := n.systemd.enable(ctx, laminaUnit, printUnit); err != nil {
		return err
	}
	return n.restartFor(ctx, laminaUnit, servedWith, paths(served))
}

// restartFor restarts a unit unless it was, for these contents, and starts it otherwise. Who is killed before that is
// written down restarts it once more.
func (n *node) restartFor(ctx context.Context, unit, with string, files []string) error {
	want, err := digest(files)
	if err != nil {
		return err
	}
	if is(with, want) {
		return n.systemd.start(ctx, unit)
	}
	n.say("restarting %s", unit)
	// Nobody knows what it runs with until it is written down again.
	if err := errors.Join(removeAll([]string{with}), n.systemd.restart(ctx, unit)); err != nil {
		return err
	}
	return put(file{to: with, text: want})
}

// remove takes away first what containerd needs the daemon for. What Lamina keeps stays, and its configuration.
func (n *node) remove(ctx context.Context) error {
	if err := errors.Join(n.refusePackage(ctx), removeAll(containerdFiles)); err != nil {
		return err
	}
	if _, err := os.Stat(containerdWith); err == nil {
		n.say("restarting %s", containerdUnit)
		if err := n.systemd.restart(ctx, containerdUnit); err != nil {
			return err
		}
	}
	if err := n.systemd.disable(ctx, laminaUnit, printUnit); err != nil {
		return err
	}
	dropIn := filepath.Join(units, laminaUnit+".d")
	err := removeAll([]string{
		filepath.Join(dropIn, "node.conf"), dropIn, filepath.Join(units, laminaUnit), filepath.Join(units, printUnit),
		program, filepath.Dir(program), servedWith, containerdWith, refusedWith,
		acceptedFile(containerdFiles[1]), acceptedFile(containerdFiles[2]), accepted,
	})
	return errors.Join(err, n.systemd.reload(ctx))
}

func (n *node) check(ctx context.Context) error {
	for _, unit := range []string{laminaUnit, containerdUnit} {
		state, err := n.systemd.property(ctx, unit, "ActiveState")
		if err != nil {
			return err
		}
		if state != "active" {
			return fmt.Errorf("%s is %s", unit, state)
		}
	}
	return nil
}

// refusePackage keeps two installations from sharing a unit.
func (n *node) refusePackage(ctx context.Context) error {
	where, err := n.systemd.property(ctx, laminaUnit, "FragmentPath")
	if err == nil && where != "" && where != filepath.Join(units, laminaUnit) {
		return fmt.Errorf("%s is from %s: remove the package that this node has Lamina from, or leave the node out", laminaUnit, where)
	}
	return err
}

// refuseImports refuses a containerd that would not read what is installed. Its own file is the administrator's.
func refuseImports() error {
	text, err := os.ReadFile(containerdMain)
	if err != nil {
		return err
	}
	var c struct{ Imports []string }
	if err := toml.Unmarshal(text, &c); err != nil {
		return fmt.Errorf("%s: %w", containerdMain, err)
	}
	if !slices.ContainsFunc(c.Imports, imports) {
		return fmt.Errorf("%s does not import %s/*.toml: it needs the line imports = [%q], above all tables",
			containerdMain, containerdConf, containerdConf+"/*.toml")
	}
	return nil
}

func imports(pattern string) bool {
	if !filepath.IsAbs(pattern) {
		pattern = filepath.Join(filepath.Dir(containerdMain), pattern)
	}
	matches, err := filepath.Match(pattern, containerdFiles[1])
	return err == nil && matches
}
