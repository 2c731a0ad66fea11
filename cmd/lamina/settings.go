package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/pelletier/go-toml/v2"
	"github.com/urfave/cli/v3"

	"github.com/lamina-snapshotter/lamina"
)

const (
	defaultConfigFile = "/etc/lamina/config.toml"
	defaultAddress    = "/run/lamina/lamina.sock"
	defaultContainerd = "/run/containerd/containerd.sock"

	// adminName is the name of the admin socket in the directory of the other, where nobody says more.
	adminName = "admin.sock"
	// besideAddress stands for that until the settings are loaded: it is no path, and "" is off.
	besideAddress = "\x00"

	// maxAddress is the longest path that sockaddr_un takes: 108 bytes with the NUL (unix(7)).
	maxAddress = 107
)

// settings are everything that the config file can say. A default stands for each key that it does not have.
type settings struct {
	lamina.Config

	// Address is the path of the socket.
	Address string `toml:"address"`
	// Pprof is where profiles are served: the path of a socket or a loopback address, or nowhere if it is empty.
	Pprof      string             `toml:"pprof,omitempty"`
	Admin      adminSettings      `toml:"admin"`
	Metrics    metricsSettings    `toml:"metrics,omitempty"`
	Tracing    tracingSettings    `toml:"tracing,omitempty"`
	Containerd containerdSettings `toml:"containerd"`
	Log        logSettings        `toml:"log"`
}

// containerdSettings say where the containerd is whose content store layers are written to.
type containerdSettings struct {
	// Address is the path of its socket.
	Address string `toml:"address"`
}

// adminSettings say where operators ask.
type adminSettings struct {
	// Address is the path of the admin socket, beside the other unless it is set, or "" for none.
	Address string `toml:"address"`
}

type logSettings struct {
	Level  string `toml:"level"`
	Format string `toml:"format"`
}

func defaultSettings() settings {
	return settings{
		Config:     lamina.DefaultConfig(),
		Address:    defaultAddress,
		Admin:      adminSettings{Address: besideAddress},
		Containerd: containerdSettings{Address: defaultContainerd},
		Log:        logSettings{Level: "info", Format: "text"},
	}
}

// loadSettings reads the config file, if there is one, and lets the flags override it. Every error is an errConfig and
// names the key, and the file and line where there is one.
func loadSettings(c *cli.Command) (settings, error) {
	s, err := readSettings(c.String("config"), c.IsSet("config"))
	if err != nil {
		return settings{}, fmt.Errorf("%w: %w", errConfig, err)
	}
	for flag, value := range map[string]*string{
		"root": &s.Root, "address": &s.Address, "admin-address": &s.Admin.Address, "log-level": &s.Log.Level, "pprof": &s.Pprof,
	} {
		if c.IsSet(flag) {
			*value = c.String(flag)
		}
	}
	if err := s.check(); err != nil {
		return settings{}, fmt.Errorf("%w: %w", errConfig, err)
	}
	s.Admin.Address = s.adminAddress()
	return s, nil
}

// adminAddress returns the path of the admin socket.
func (s settings) adminAddress() string {
	if s.Admin.Address == besideAddress {
		return filepath.Join(filepath.Dir(s.Address), adminName)
	}
	return s.Admin.Address
}

// readSettings returns the settings of a file. A missing file is as good as an empty one, unless the user named it.
func readSettings(path string, named bool) (settings, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && !named {
		return defaultSettings(), nil
	}
	if err != nil {
		return settings{}, err
	}
	s, err := parseSettings(path, text)
	if err != nil {
		return settings{}, err
	}
	// The flags may still change a value, but a wrong one in the file is reported as the file's.
	if err := s.check(); err != nil {
		return settings{}, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// parseSettings decodes a config file. A [snapshotters] table replaces the default one: who names snapshotters wants
// those and no other.
func parseSettings(path string, text []byte) (settings, error) {
	s := defaultSettings()
	s.Snapshotters = nil
	if err := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(&s); err != nil {
		return settings{}, locate(path, err)
	}
	var has struct {
		Snapshotters *struct{} `toml:"snapshotters"`
	}
	if err := toml.Unmarshal(text, &has); err != nil {
		return settings{}, locate(path, err)
	}
	if has.Snapshotters == nil {
		s.Snapshotters = lamina.DefaultSnapshotters()
	}
	for name, sn := range s.Snapshotters {
		if sn.Backend == "" {
			s.Snapshotters[name] = lamina.SnapshotterConfig{Backend: lamina.BackendUnion}
		}
	}
	return s, nil
}

// locate says where in the file the decoder's complaint is, and about which key. It lists all unknown keys at once.
func locate(path string, err error) error {
	if missing, ok := errors.AsType[*toml.StrictMissingError](err); ok {
		var errs []error
		for _, e := range missing.Errors {
			line, _ := e.Position()
			errs = append(errs, fmt.Errorf("%s:%d: %s: unknown key", path, line, keyName(e.Key())))
		}
		return errors.Join(errs...)
	}
	if e, ok := errors.AsType[*toml.DecodeError](err); ok {
		line, column := e.Position()
		if len(e.Key()) == 0 {
			return fmt.Errorf("%s:%d:%d: %w", path, line, column, err)
		}
		return fmt.Errorf("%s:%d: %s: %w", path, line, keyName(e.Key()), err)
	}
	return fmt.Errorf("%s: %w", path, err)
}

func keyName(key toml.Key) string { return strings.Join(key, ".") }

// check reports every value that cannot be.
func (s settings) check() error {
	return errors.Join(
		s.Validate(), // of the embedded lamina.Config
		validateAddress("address", s.Address),
		validateAddress("containerd.address", s.Containerd.Address),
		s.validatePprof(),
		s.validateAdmin(),
		s.validateMetrics(),
		s.validateTracing(),
		s.validateListening(),
		oneOf("log.level", s.Log.Level, "trace", "debug", "info", "warn", "error"),
		oneOf("log.format", s.Log.Format, "text", "json"),
	)
}

func validateAddress(key, address string) error {
	switch {
	case !filepath.IsAbs(address):
		return fmt.Errorf("%s: %q is not an absolute path", key, address)
	case len(address) > maxAddress:
		return fmt.Errorf("%s: %q has %d bytes; the path of a unix socket has at most %d", key, address, len(address), maxAddress)
	case strings.ContainsFunc(address, unicode.IsControl):
		return fmt.Errorf("%s: %q has a control character in it", key, address)
	default:
		return nil
	}
}

func (s settings) validateAdmin() error {
	address := s.adminAddress()
	if address == "" || !filepath.IsAbs(s.Address) && s.Admin.Address == besideAddress {
		return nil // the latter is a fault of address
	}
	return validateAddress("admin.address", address)
}

func (s settings) validatePprof() error {
	if s.Pprof == "" {
		return nil
	}
	_, _, err := localNetwork("pprof", s.Pprof)
	return err
}

func oneOf(key, value string, allowed ...string) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	return fmt.Errorf("%s: %q is none of: %s", key, value, strings.Join(allowed, ", "))
}

// settingsFlags are the flags of every command that reads the settings.
func settingsFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{
			Name:  "config",
			Usage: "read the configuration from `FILE`, which must exist if it is named",
			Value: defaultConfigFile,
		},
		&cli.StringFlag{Name: "root", Usage: "keep the store and the layers in `DIR`, whatever the file says"},
		&cli.StringFlag{Name: "address", Usage: "listen on the unix socket `PATH`, whatever the file says"},
		&cli.StringFlag{Name: "admin-address", Usage: "the admin socket is at `PATH`, whatever the file says, or nowhere if it is empty"},
		&cli.StringFlag{Name: "log-level", Usage: "log from `LEVEL` up: trace, debug, info, warn, error"},
	}
}
