package integration

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/integration/image"
)

// largestTree is how many entries a directory may have that a change takes away: the image is to outlast many changes.
const largestTree = 40

// A changer makes random changes in a tree, as processes in a container do.
type changer struct {
	t     *testing.T
	dir   string
	rng   *rand.Rand
	files []string // from dir; some may be gone
	dirs  []string
	made  map[string]int // how often each change was made
	names int
}

// newChanger reads what there is to change in dir.
func newChanger(t *testing.T, dir string, rng *rand.Rand) *changer {
	t.Helper()
	c := &changer{t: t, dir: dir, rng: rng, made: map[string]int{}}
	require.NoError(t, filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		rel := strings.TrimPrefix(name, dir+"/")
		switch {
		case err != nil:
			return err
		case name == dir, rel == image.Big, rel == filepath.Dir(image.Big):
		case d.IsDir():
			c.dirs = append(c.dirs, rel)
		default:
			c.files = append(c.files, rel)
		}
		return nil
	}))
	return c
}

// change makes that many changes, each kind as often as any other, in random order.
func (c *changer) change(count int) {
	c.t.Helper()
	names := make([]string, 0, len(changes))
	for name := range changes {
		names = append(names, name)
	}
	slices.Sort(names)
	for i := range count {
		if i%len(names) == 0 {
			c.rng.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
		}
		name := names[i%len(names)]
		if err := changes[name](c); !errors.Is(err, errNothing) {
			require.NoError(c.t, err, name)
			c.made[name]++
		}
	}
}

// requireAll checks that each kind of change was made.
func (c *changer) requireAll() {
	c.t.Helper()
	for name := range changes {
		require.NotZero(c.t, c.made[name], name)
	}
}

func (c *changer) at(rel string) string { return filepath.Join(c.dir, rel) }

// pick returns the full path of one of the entries that is there and fits, or "" if there is none.
func (c *changer) pick(from []string, fits func(fs.FileInfo) bool) string {
	first := c.rng.IntN(max(1, len(from)))
	for i := range from {
		name := c.at(from[(first+i)%len(from)])
		info, err := os.Lstat(name)
		if err != nil || !fits(info) {
			continue
		}
		// A symlink may stand where a directory was on the way.
		if real, err := filepath.EvalSymlinks(filepath.Dir(name)); err == nil && real == filepath.Dir(name) {
			return name
		}
	}
	return ""
}

func (c *changer) file() string {
	return c.pick(c.files, func(i fs.FileInfo) bool { return !i.IsDir() })
}

func (c *changer) regular() string { return c.pick(c.files, hasContent(4<<20)) }

// hasContent tells the files that are neither empty nor larger than that.
func hasContent(most int64) func(fs.FileInfo) bool {
	return func(i fs.FileInfo) bool { return i.Mode().IsRegular() && i.Size() > 0 && i.Size() <= most }
}

func (c *changer) directory() string { return c.pick(c.dirs, fs.FileInfo.IsDir) }

// tree returns a directory with a few entries.
func (c *changer) tree() string {
	for range 300 {
		if name := c.directory(); name != "" && entriesBelow(name, largestTree) < largestTree {
			return name
		}
	}
	return ""
}

// entriesBelow counts up to a bound.
func entriesBelow(dir string, most int) (n int) {
	_ = filepath.WalkDir(dir, func(string, fs.DirEntry, error) error {
		if n++; n >= most {
			return fs.SkipAll
		}
		return nil
	})
	return n
}

// oddNames are what a name has in it, besides a number.
var oddNames = []string{"plain", "with space", "new\nline", "tab\t", "\xff\xfe not utf-8", "ümläut", "-dash", "back\\slash", "quo\"te", "=,:", ".hidden", "wh.", strings.Repeat("long", 50)}

// name returns a path that is free, in some directory.
func (c *changer) name() string {
	for {
		c.names++
		rel := fmt.Sprintf("%s %d", oddNames[c.rng.IntN(len(oddNames))], c.names)
		name := c.at(rel)
		if dir := c.directory(); dir != "" && len(dir) < 2000 {
			name = filepath.Join(dir, rel)
		}
		if _, err := os.Lstat(name); err != nil { // a changer of the container before had the same numbers
			return name
		}
	}
}

// added remembers an entry for changes to come.
func (c *changer) added(name string) {
	rel := strings.TrimPrefix(name, c.dir+"/")
	if info, err := os.Lstat(name); err == nil && info.IsDir() {
		c.dirs = append(c.dirs, rel)
	} else {
		c.files = append(c.files, rel)
	}
}

func (c *changer) bytes(most int) []byte {
	b := make([]byte, c.rng.IntN(most+1))
	for i := range b {
		b[i] = byte(c.rng.Uint32())
	}
	return b
}

func (c *changer) write(name string) error {
	defer c.added(name)
	return os.WriteFile(name, c.bytes(32<<10), fs.FileMode(0o400+c.rng.IntN(0o400)))
}
