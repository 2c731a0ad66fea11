package integration

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// What is tested is built from the sources of these tests, as make build does
// it: a daemon that lies about in bin may be of others, with another store.
var (
	buildLamina = sync.OnceValues(func() (string, error) { return build("..", "./cmd/lamina") })
	buildLinked = sync.OnceValues(func() (string, error) { return build("containerd", "./linked") })
	// buildMortal builds the daemon that dies at the points of internal/failpoint.
	buildMortal = sync.OnceValues(func() (string, error) {
		if programs := os.Getenv(programsVariable); programs != "" {
			return filepath.Join(programs, mortal), nil
		}
		return buildMortalInto(session)
	})
)

// mortal is the name of that program.
const mortal = "lamina-failpoint"

// buildMortalInto does without the race detector: the other builds of the daemon
// have it, and this one starts hundreds of times.
func buildMortalInto(programs string) (string, error) {
	return buildInto(filepath.Join(programs, mortal), "..", "./cmd/lamina", false, "-tags", "failpoint")
}

// build builds a package of the module in dir and returns the program's path.
// It has the race detector if the tests have. In a guest it is there already.
func build(dir, pkg string) (string, error) {
	if programs := os.Getenv(programsVariable); programs != "" {
		return filepath.Join(programs, filepath.Base(pkg)), nil
	}
	return buildInto(filepath.Join(session, filepath.Base(pkg)), dir, pkg, raceEnabled)
}

// buildPlain builds what the tests in a guest need, where no race detector runs.
func buildPlain(programs string) error {
	_, err := buildInto(filepath.Join(programs, "lamina"), "..", "./cmd/lamina", false)
	_, mortalErr := buildMortalInto(programs)
	return errors.Join(err, mortalErr)
}

// buildTime bounds a build: with the race detector and nothing in Go's cache it takes minutes on two slow processors.
const buildTime = 10 * time.Minute

func buildInto(program, dir, pkg string, race bool, flags ...string) (string, error) {
	env, args := []string{"CGO_ENABLED=0"}, []string{"go", "build", "-C", dir, "-buildvcs=false", "-trimpath"}
	if race {
		env, args = []string{"CGO_ENABLED=1"}, append(args, "-race")
	}
	args = append(append(args, flags...), "-ldflags", "-X main.version=test", "-o", program, pkg)
	_, err := commandWithin(background, buildTime, env, args...)
	return program, err
}

// mustBuild returns the path of the program that one of the above builds.
func mustBuild(t *testing.T, build func() (string, error)) string {
	t.Helper()
	program, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return program
}
