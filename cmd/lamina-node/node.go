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
	root          string // its own, "" but in tests
	image, config string
	out           io.Writer
	systemd       manager
}

// A manager of services is systemd.
type manager interface {
	property(ctx context.Context, unit, name string) (string, error)
	enable(ctx context.Context, units ...string) error
	disable(ctx context.Context, units ...string) error
	start(ctx context.Context, unit string) error
	restart(ctx context.Context, unit string) error
	reload(ctx context.Context) error
}

func (n *node) at(name string) string { return filepath.Join(n.root, name) }

func (n *node) say(format string, args ...any) { _, _ = fmt.Fprintf(n.out, format+"\n", args...) }

// within does something with a bound, and with systemd, which is also there for what is still to be done when ctx is done.
func (n *node) within(ctx context.Context, do func(*node, context.Context) error) error {
	longer, end := context.WithTimeout(context.WithoutCancel(ctx), jobTimeout+fallBackTimeout)
	defer end()
	ctx, cancel := context.WithTimeout(ctx, jobTimeout)
	defer cancel()
	systemd, err := connect(longer)
	if err != nil {
		return err
	}
	defer systemd.close()
	n.systemd = systemd
	return do(n, ctx)
}

// served are the files that the daemon runs with.
func (n *node) served() []file {
	return []file{
		{to: n.at(program), from: filepath.Join(n.image, "lamina"), mode: 0o755},
		{to: n.at(filepath.Join(units, laminaUnit)), from: filepath.Join(n.image, laminaUnit)},
		{to: n.at(filepath.Join(units, laminaUnit+".d", "node.conf")), text: laminaDropIn},
		{to: n.at(laminaConfig), from: filepath.Join(n.config, "config.toml")},
	}
}

// told are containerdFiles.
func (n *node) told() []file {
	printed := n.at(containerdFiles[0])
	return []file{
		{to: printed, from: printed},
		{to: n.at(containerdFiles[1]), from: filepath.Join(n.config, "cri.toml")},
		{to: n.at(containerdFiles[2]), from: filepath.Join(n.config, "systemd.toml")},
	}
}

func (n *node) install(ctx context.Context) error {
	if err := errors.Join(n.refusePackage(ctx), n.refuseImports()); err != nil {
		return err
	}
	wanted, err := digest(append(n.served(), n.told()[1:]...)) // what is printed follows from it
	if err != nil {
		return err
	}
	if is(n.at(refusedWith), wanted) { // or each start of this pod would restart containerd twice
		return n.refused(ctx)
	}
	if err := n.installLamina(ctx); err != nil {
		return err
	}
	return n.installContainerd(ctx, wanted)
}

// installLamina leaves a daemon that runs with what is installed. Containers go on while it is restarted.
func (n *node) installLamina(ctx context.Context) error {
	served := n.served()
	if err := errors.Join(putAll(served), put(file{to: n.at(filepath.Join(units, printUnit)), text: printUnitText})); err != nil {
		return err
	}
	if err := n.systemd.enable(ctx, laminaUnit, printUnit); err != nil {
		return err
	}
	return n.restartFor(ctx, laminaUnit, n.at(servedWith), served)
}

// restartFor restarts a unit unless it was, for these contents, and starts it otherwise. Who is killed before that is
// written down restarts it once more.
func (n *node) restartFor(ctx context.Context, unit, with string, files []file) error {
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
	if err := n.refusePackage(ctx); err != nil {
		return err
	}
	told, err := n.anyExists(append([]string{containerdWith, accepted}, containerdFiles...))
	if err != nil {
		return err
	}
	if told {
		if err := put(file{to: n.at(containerdWith)}); err != nil { // says so still after a kill
			return err
		}
		n.say("restarting %s", containerdUnit)
		if err := errors.Join(n.removeAll(containerdFiles), n.systemd.restart(ctx, containerdUnit)); err != nil {
			return err
		}
	}
	if err := n.systemd.disable(ctx, laminaUnit, printUnit); err != nil {
		return err
	}
	dropIn := filepath.Join(units, laminaUnit+".d")
	gone := []string{
		filepath.Join(dropIn, "node.conf"), dropIn, filepath.Join(units, laminaUnit), filepath.Join(units, printUnit),
		program, filepath.Dir(program), servedWith, containerdWith, refusedWith, nextOf(laminaConfig),
	}
	gone = append(gone, containerdFiles...) // what there is of the next ones, if containerd was told of none
	for _, name := range kept {
		gone = append(gone, filepath.Join(accepted, filepath.Base(name)))
	}
	return errors.Join(n.removeAll(append(gone, accepted)), n.systemd.reload(ctx))
}

func (n *node) removeAll(names []string) (err error) {
	for _, name := range names {
		err = errors.Join(err, removeAll([]string{n.at(name)}))
	}
	return err
}

func (n *node) anyExists(names []string) (bool, error) {
	for _, name := range names {
		if is, err := exists(n.at(name)); err != nil || is {
			return is, err
		}
	}
	return false, nil
}

// check says whether what this pod installs is installed, and runs: services that do may still have what was before.
func (n *node) check(ctx context.Context) error {
	for _, c := range []struct {
		unit, with string
		files      []file
	}{
		{laminaUnit, servedWith, n.served()},
		{containerdUnit, containerdWith, n.told()},
	} {
		state, err := n.systemd.property(ctx, c.unit, "ActiveState")
		if err != nil {
			return err
		}
		if state != "active" {
			return fmt.Errorf("%s is %s", c.unit, state)
		}
		want, err := digest(c.files)
		if err != nil {
			return err
		}
		if !is(n.at(c.with), want) {
			return fmt.Errorf("%s does not run with the files of this pod yet", c.unit)
		}
	}
	return nil
}

// refusePackage keeps two installations from sharing a unit. A package that is removed and not purged leaves a mask, which looks
// as that of an administrator does.
func (n *node) refusePackage(ctx context.Context) error {
	state, err := n.systemd.property(ctx, laminaUnit, "LoadState")
	if err != nil {
		return err
	}
	if state == "masked" {
		return fmt.Errorf(`%s is masked: by a package that was removed, then "apt purge lamina", or by an administrator, then "systemctl unmask lamina"`, laminaUnit)
	}
	where, err := n.systemd.property(ctx, laminaUnit, "FragmentPath")
	if err == nil && where != "" && where != filepath.Join(units, laminaUnit) {
		return fmt.Errorf(`%s is from %s: "apt purge lamina", or leave the node out`, laminaUnit, where)
	}
	return err
}

// refuseImports refuses a containerd that would not read what is installed. Its own file is the administrator's.
func (n *node) refuseImports() error {
	text, err := os.ReadFile(n.at(containerdMain))
	if err != nil {
		return err
	}
	var c struct{ Imports []string }
	if err := toml.Unmarshal(text, &c); err != nil {
		return fmt.Errorf("%s: %w", containerdMain, err)
	}
	for _, name := range containerdFiles {
		if !slices.ContainsFunc(c.Imports, func(pattern string) bool { return imports(pattern, name) }) {
			return fmt.Errorf("%s does not import %s: it needs the line imports = [%q], above all tables",
				containerdMain, name, containerdConf+"/*.toml")
		}
	}
	return nil
}

func imports(pattern, name string) bool {
	if !filepath.IsAbs(pattern) {
		pattern = filepath.Join(filepath.Dir(containerdMain), pattern)
	}
	matches, err := filepath.Match(pattern, name)
	return err == nil && matches
}
