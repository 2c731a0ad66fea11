package guest

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// stageVariable says what a process of a guest is to be: the launcher has it
// from its parent, process 1 from the kernel's command line.
const (
	stageVariable = "LAMINA_GUEST_STAGE"
	stageLaunch   = "launch"
	stageBoot     = "boot"
)

// runDir is where the launcher keeps the files of a guest, in its private
// /dev/shm. The guest finds them at the same path.
const runDir = "/dev/shm/lamina-guest"

// A spec is what the stages of a guest tell one another.
type spec struct {
	Path string   // of the program
	Args []string // with the name of the program
	Env  []string
	Dir  string

	Init    string   // program that becomes process 1
	Rebuild []string // arguments of the go command that make Init anew, or nil
	Self    bool     // the program is Init

	Modules string // directory of the kernel's modules, as /lib/modules
	Kernel  kernel // of a guest in QEMU

	Memory   int64
	Disks    int // number of disks
	Udev     bool
	SELinux  bool
	Merged   bool // standard error goes where standard output goes
	Visible  []string
	Writable []string // absolute

	// Timeout is how long the program may run before the guest says which of
	// its tasks are blocked, and gives up.
	Timeout time.Duration
}

func newSpec(p Program, o Options) (*spec, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	dir := p.Dir
	if dir == "" {
		if dir, err = os.Getwd(); err != nil {
			return nil, err
		}
	}
	env := p.Env
	if env == nil {
		env = os.Environ()
	}
	s := &spec{
		Path: p.Path, Args: append([]string{p.Path}, p.Args...), Env: env, Dir: dir,
		Init: exe, Self: p.Path == exe,
		Memory: o.Memory, Disks: 1 + len(o.ExtraDisks), Udev: o.Udev, SELinux: o.SELinux,
		Merged:  sameFile(p.Stdout, p.Stderr),
		Visible: []string{moduleRoot(dir), filepath.Dir(p.Path)},
		Timeout: o.Timeout,
	}
	for _, w := range o.Writable {
		if !filepath.IsAbs(w) {
			w = filepath.Join(dir, w)
		}
		s.Writable = append(s.Writable, w)
	}
	return s, nil
}

// moduleRoot returns the nearest directory above dir with a go.mod, or dir.
func moduleRoot(dir string) string {
	for d := dir; d != "/"; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "go.mod")); err == nil {
			return d
		}
	}
	return dir
}

// sameFile reports whether two writers are one file, as under go test.
func sameFile(a, b io.Writer) bool {
	x, ok1 := a.(*os.File)
	y, ok2 := b.(*os.File)
	if !ok1 || !ok2 {
		return a == b
	}
	xi, err1 := x.Stat()
	yi, err2 := y.Stat()
	return err1 == nil && err2 == nil && os.SameFile(xi, yi)
}

func (s *spec) save() error {
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return os.WriteFile(specFile(), data, 0o600)
}

func loadSpec() (*spec, error) {
	data, err := os.ReadFile(specFile())
	if err != nil {
		return nil, err
	}
	s := new(spec)
	return s, json.Unmarshal(data, s)
}

func specFile() string { return filepath.Join(runDir, "spec.json") }

// Reenter turns a process that a guest consists of into that part of it, and
// does not return then. In any other process it does nothing. A program that
// calls [Run] calls it before anything else; [Main] does so itself.
func Reenter() {
	switch stage := os.Getenv(stageVariable); {
	case stage == stageLaunch:
		os.Exit(launch())
	case stage == stageBoot && os.Getpid() == 1:
		boot(chosen())
	}
}

// setenv returns env with one value for key: of two, Go takes the first and
// others the last.
func setenv(env []string, key, value string) []string {
	env = slices.DeleteFunc(slices.Clone(env), func(s string) bool { return strings.HasPrefix(s, key+"=") })
	return append(env, key+"="+value)
}

// securityArguments are those of the kernel's command line that choose its security module, if it is to have one.
func (s *spec) securityArguments() []string {
	if !s.SELinux {
		return nil
	}
	return []string{SELinuxArgument, "selinux=1"}
}
