//go:build failpoint

package failpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// Hit marks a step. It logs it, and does not return if the process is to die there.
func Hit(name string) { points().hit(name) }

// points are those of this process.
var points = sync.OnceValue(func() *registry {
	r := &registry{target: os.Getenv("LAMINA_FAILPOINT"), die: die}
	if path := os.Getenv("LAMINA_FAILPOINT_LOG"); path != "" {
		var err error
		if r.log, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600); err != nil {
			panic(err) // a test that cannot see the hits must not pass
		}
	}
	return r
})

type registry struct {
	target string // as in the environment
	log    *os.File
	die    func()

	mu    sync.Mutex
	armed string // the target that count is of
	count int
}

func (r *registry) hit(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.log != nil {
		if _, err := r.log.WriteString(name + "\n"); err != nil {
			panic(err)
		}
	}
	armed, at, err := parse(r.read())
	if err != nil {
		panic(err)
	}
	if now := fmt.Sprint(armed, ":", at); now != r.armed {
		r.armed, r.count = now, 0
	}
	if name != armed {
		return
	}
	if r.count++; r.count == at {
		r.die()
	}
}

// read returns the target of this moment.
func (r *registry) read() string {
	path, isFile := strings.CutPrefix(r.target, "@")
	if !isFile {
		return r.target
	}
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		panic(err)
	}
	return strings.TrimSpace(string(text))
}

// parse reads NAME or NAME:N.
func parse(target string) (name string, at int, err error) {
	name, number, found := strings.Cut(target, ":")
	if !found {
		return name, 1, nil
	}
	if at, err = strconv.Atoi(number); err != nil || at < 1 {
		return "", 0, fmt.Errorf("failpoint %q: it is NAME or NAME:N, with N from 1 on", target)
	}
	return name, at, nil
}

// die ends the process. The signal may take a moment to arrive, and nothing more is to be done until then.
func die() {
	_ = syscall.Kill(syscall.Getpid(), syscall.SIGKILL)
	select {}
}
