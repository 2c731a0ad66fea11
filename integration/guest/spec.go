package guest

import (
	"encoding/json"
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

	Memory   int64
	Disks    int // number of disks
	Udev     bool
	Merged   bool // standard error goes where standard output goes
	Visible  []string
	Writable []string

	// Timeout is how long the program may run before the guest says which of
	// its tasks are blocked, and gives up.
	Timeout time.Duration
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
		boot()
	}
}

// setenv returns env with one value for key: of two, Go takes the first and
// others the last.
func setenv(env []string, key, value string) []string {
	env = slices.DeleteFunc(slices.Clone(env), func(s string) bool { return strings.HasPrefix(s, key+"=") })
	return append(env, key+"="+value)
}
