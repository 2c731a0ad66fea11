package integration

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/doctor"
	"github.com/lamina-snapshotter/lamina/metadata"
)

// The exit codes of lamina doctor.
const (
	doctorClean     = 0
	doctorFindings  = 1
	doctorNotLooked = 2
)

// A patient is a root that the doctor is sent to.
type patient struct {
	t    *testing.T
	dir  string // of the configuration
	root string
}

// doctor runs lamina doctor.
func (p patient) doctor(args ...string) (code int, stdout, stderr string) {
	p.t.Helper()
	args = append([]string{"doctor", "--config", filepath.Join(p.dir, "config.toml"), "--root", p.root}, args...)
	ctx, cancel := context.WithTimeout(background, 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, mustBuild(p.t, buildLamina), args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		p.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// findings returns what the doctor finds.
func (p patient) findings() (found []doctor.Finding) {
	p.t.Helper()
	code, out, errs := p.doctor("-o", "json")
	for line := range strings.Lines(out) {
		var f doctor.Finding
		require.NoError(p.t, json.Unmarshal([]byte(line), &f), "%s", line)
		found = append(found, f)
	}
	want := doctorClean
	if slices.ContainsFunc(found, func(f doctor.Finding) bool { return !f.Note }) {
		want = doctorFindings
	}
	require.Equal(p.t, want, code, "%s%s", out, errs)
	return found
}

func codes(found []doctor.Finding) (codes []doctor.Code) {
	for _, f := range found {
		codes = append(codes, f.Code)
	}
	return codes
}

// requireClean checks that the doctor finds nothing.
func (p patient) requireClean() {
	p.t.Helper()
	code, out, errs := p.doctor()
	require.Equal(p.t, doctorClean, code, "%s%s", out, errs)
}

// doctored checks that the doctor finds nothing in a root that no daemon has.
func doctored(t *testing.T, b backend, root string) {
	t.Helper()
	require.NoError(t, lamina.Examine(background, b.config(root), func(f doctor.Finding) {
		if !f.Note {
			t.Errorf("the doctor: %s", f)
		}
	}))
}

// digest returns a digest of all that lies in a directory.
func treeDigest(t *testing.T, dir string) string {
	t.Helper()
	sum := sha256.New()
	require.NoError(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		fmt.Fprintln(sum, path, info.Mode(), info.Size(), info.ModTime().UnixNano())
		if info.Mode().IsRegular() && info.Size() < 64<<20 {
			content, err := os.ReadFile(path)
			sum.Write(content)
			return err
		}
		return nil
	}))
	return hex.EncodeToString(sum.Sum(nil))
}

// unionPatient is a root of directories with a chain of three layers, a view and
// an active snapshot, which no daemon has.
func unionPatient(t *testing.T) patient {
	t.Helper()
	d := startDaemon(t, mustTempDir(t), union)
	h := d.client(lamina.DefaultName)
	h.layer("one", "", []byte("1"))
	h.layer("two", "one", []byte("2"))
	h.layer("three", "two", []byte("3"))
	h.prepare("active", "two", nil)
	_, err := h.View(t.Context(), "view", "one")
	require.NoError(t, err)
	p := patient{t, d.dir, d.root()}
	p.requireClean() // beside the daemon
	d.stop()
	return p
}

// copy returns a patient like p.
func (p patient) copy(t *testing.T) patient {
	t.Helper()
	root := filepath.Join(mustTempDir(t), "root")
	_, err := command(background, nil, "cp", "-a", p.root, root)
	require.NoError(t, err)
	return patient{t, p.dir, root}
}

// dirOf returns the directory of a snapshot.
func (p patient) dirOf(key string) string {
	p.t.Helper()
	return filepath.Join(p.root, "union", fmt.Sprint(p.record(key).ID))
}

func (p patient) record(key string) (sn metadata.Snapshot) {
	p.t.Helper()
	p.withStore(metadata.Options{ReadOnly: true}, func(s *metadata.Store) (err error) {
		sn, err = s.Get(lamina.DefaultName, key)
		return err
	})
	return sn
}

func (p patient) withStore(o metadata.Options, fn func(*metadata.Store) error) {
	p.t.Helper()
	store, err := metadata.Open(filepath.Join(p.root, "lamina.db"), o)
	require.NoError(p.t, err)
	require.NoError(p.t, errors.Join(fn(store), store.Close()))
}

// forget removes a record as the daemon does, and leaves the rest to the reaper.
func (p patient) forget(key string) {
	p.t.Helper()
	p.withStore(metadata.Options{}, func(s *metadata.Store) error {
		_, err := s.Remove(p.t.Context(), lamina.DefaultName, key)
		return err
	})
}

// replace replaces a text in the owner file of the directories.
func (p patient) replaceInOwner(old, text string) {
	p.t.Helper()
	path := filepath.Join(p.root, "union", "owner")
	was, err := os.ReadFile(path)
	require.NoError(p.t, err)
	require.Contains(p.t, string(was), old)
	require.NoError(p.t, os.WriteFile(path, bytes.Replace(was, []byte(old), []byte(text), 1), 0o600))
}

// TestDoctorFindsAndCures makes each kind of damage, one at a time: the doctor
// finds it and nothing else, changes nothing, and after a repair finds nothing any
// more, unless it is left to the user.
func TestDoctorFindsAndCures(t *testing.T) {
	requireRoot(t)
	sound := unionPatient(t)
	sound.requireClean()
	for _, test := range []struct {
		name   string
		damage func(p patient)
		found  []doctor.Code
		repair []string // beside --repair --yes
		left   []doctor.Code
		gone   []string // snapshots that the repair removes
	}{
		{name: "a directory without record", found: []doctor.Code{doctor.ContentSurplus, doctor.ContentSurplus}, damage: func(p patient) {
			require.NoError(t, os.MkdirAll(filepath.Join(p.root, "union/999/fs/some"), 0o755))
			require.NoError(t, os.MkdirAll(filepath.Join(p.root, "union/77"), 0o755))
		}},
		{name: "an active snapshot without directory", found: []doctor.Code{doctor.ContentMissing}, damage: func(p patient) {
			require.NoError(t, os.RemoveAll(p.dirOf("active")))
		}},
		{name: "an active snapshot without work", found: []doctor.Code{doctor.ContentMissing}, damage: func(p patient) {
			require.NoError(t, os.RemoveAll(filepath.Join(p.dirOf("active"), "work")))
		}},
		{
			name: "a layer without directory", found: []doctor.Code{doctor.ContentLost},
			repair: []string{"--remove-lost"}, gone: []string{"three"},
			damage: func(p patient) { require.NoError(t, os.RemoveAll(p.dirOf("three"))) },
		},
		{
			name: "layers without fs", found: []doctor.Code{doctor.ContentLost, doctor.ContentLost},
			repair: []string{"--remove-lost"}, gone: []string{"two", "three", "active"},
			damage: func(p patient) {
				require.NoError(t, os.RemoveAll(filepath.Join(p.dirOf("two"), "fs")))
				require.NoError(t, os.RemoveAll(filepath.Join(p.dirOf("three"), "fs")))
			},
		},
		{
			name: "a lost layer that is to stay", found: []doctor.Code{doctor.ContentLost}, left: []doctor.Code{doctor.ContentLost},
			damage: func(p patient) { require.NoError(t, os.RemoveAll(p.dirOf("two"))) },
		},
		{
			name: "a strange file", found: []doctor.Code{doctor.PlaceStray}, left: []doctor.Code{doctor.PlaceStray},
			damage: func(p patient) {
				require.NoError(t, os.WriteFile(filepath.Join(p.root, "union", "stray"), nil, 0o600))
			},
		},
		{
			name: "trash", found: []doctor.Code{doctor.TrashLeft}, gone: []string{"active"},
			damage: func(p patient) { p.forget("active") },
		},
		{
			name: "a cut off store", found: []doctor.Code{doctor.StoreDamaged}, left: []doctor.Code{doctor.StoreDamaged},
			damage: func(p patient) { require.NoError(t, os.Truncate(filepath.Join(p.root, "lamina.db"), 8192)) },
		},
		{
			name: "an inconsistent store", found: []doctor.Code{doctor.StoreInconsistent}, left: []doctor.Code{doctor.StoreInconsistent},
			damage: func(p patient) {
				db, err := bolt.Open(filepath.Join(p.root, "lamina.db"), 0o600, &bolt.Options{Timeout: time.Second})
				require.NoError(t, err)
				require.NoError(t, db.Update(func(tx *bolt.Tx) error {
					k, _ := tx.Bucket([]byte("children")).Cursor().First()
					return tx.Bucket([]byte("children")).Delete(k)
				}))
				// Another one, so that neither meta page has a stamp of ours, which would say that this is a commit that was cut off.
				require.NoError(t, errors.Join(db.Update(func(*bolt.Tx) error { return nil }), db.Close()))
			},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := sound.copy(t)
			test.damage(p)
			before := treeDigest(t, p.root)
			require.ElementsMatch(t, test.found, codes(p.findings()))
			require.Equal(t, before, treeDigest(t, p.root), "it changed something")
			lookCode, look, _ := p.doctor("-o", "json")
			code, out, errs := p.doctor("--repair", "--dry-run", "--remove-lost", "-o", "json")
			require.Equal(t, lookCode, code, errs)
			require.Equal(t, look, out)
			require.Contains(t, errs, "repair: "+string(test.found[0]))
			require.Equal(t, before, treeDigest(t, p.root), "a dry run changed something")

			code, out, errs = p.doctor(append([]string{"--repair", "--yes"}, test.repair...)...)
			require.ElementsMatch(t, test.left, codes(p.findings()), "%s%s", out, errs)
			require.Equal(t, min(len(test.left), 1), code, "%s%s", out, errs)
			if len(test.left) > 0 {
				return
			}
			for _, key := range []string{"one", "two", "three", "active", "view"} {
				p.withStore(metadata.Options{ReadOnly: true}, func(s *metadata.Store) error {
					_, err := s.Get(lamina.DefaultName, key)
					require.Equal(t, slices.Contains(test.gone, key), errors.Is(err, metadata.ErrNotExist), key)
					return nil
				})
			}
		})
	}
}

// TestDoctorOfPlaces finds places that are another store's, or of another time.
// They are left to the user; nothing is deleted by a repair.
func TestDoctorOfPlaces(t *testing.T) {
	requireRoot(t)
	sound := unionPatient(t)
	for name, test := range map[string]struct {
		found  doctor.Code
		damage func(p patient)
	}{
		"foreign": {doctor.PlaceForeign, func(p patient) { p.replaceInOwner(`{"uuid":"`, `{"uuid":"x`) }},
		"newer":   {doctor.PlaceNewer, func(p patient) { p.replaceInOwner(`"start":`, `"start":99`) }},
		"empty": {doctor.PlaceEmpty, func(p patient) {
			require.NoError(t, os.Rename(filepath.Join(p.root, "union"), filepath.Join(p.root, "away")))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			p := sound.copy(t)
			test.damage(p)
			before := treeDigest(t, p.root)
			require.Equal(t, []doctor.Code{test.found}, codes(p.findings()))
			code, _, errs := p.doctor("--repair", "--yes")
			require.Equal(t, doctorFindings, code, errs)
			require.Equal(t, before, treeDigest(t, p.root))
		})
	}
}

// TestDoctorCannotLook gives the reasons why.
func TestDoctorCannotLook(t *testing.T) {
	requireRoot(t)
	p := unionPatient(t)
	for reason, run := range map[string]func() (int, string, string){
		"no such file":         func() (int, string, string) { return patient{t, p.dir, p.root + "x"}.doctor() },
		"there is no terminal": func() (int, string, string) { return p.doctor("--repair") },
		"another process has the root": func() (code int, out, errs string) {
			p.withStore(metadata.Options{}, func(*metadata.Store) error {
				code, out, errs = p.doctor()
				return nil
			})
			return code, out, errs
		},
		"stop the daemon before a repair": func() (code int, out, errs string) {
			p.withStore(metadata.Options{}, func(*metadata.Store) error {
				code, out, errs = p.doctor("--repair", "--yes")
				return nil
			})
			return code, out, errs
		},
		`output: "xml"`:    func() (int, string, string) { return p.doctor("-o", "xml") },
		"are for --repair": func() (int, string, string) { return p.doctor("--yes") },
	} {
		code, out, errs := run()
		require.Equal(t, doctorNotLooked, code, "%s%s", out, errs)
		require.Contains(t, errs, reason)
	}
	p.requireClean()
}

// TestDoctorOfCutOffStore: a store whose last write was cut off is left to who opens it to be written, which a repair does.
func TestDoctorOfCutOffStore(t *testing.T) {
	requireRoot(t)
	p := unionPatient(t)
	path := filepath.Join(p.root, "lamina.db")
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second, NoFreelistSync: true})
	require.NoError(t, err)
	// A commit without the store's stamp.
	require.NoError(t, errors.Join(db.Update(func(*bolt.Tx) error { return nil }), db.Close()))
	before, err := os.ReadFile(path)
	require.NoError(t, err)
	for _, args := range [][]string{nil, {"--repair", "--dry-run"}} {
		code, out, errs := p.doctor(args...)
		require.Equal(t, doctorNotLooked, code, "%s%s", out, errs)
		require.Contains(t, errs, metadata.ErrCutOff.Error())
	}
	after, err := os.ReadFile(path)
	require.NoError(t, err)
	require.True(t, bytes.Equal(before, after), "it was changed")
	code, out, errs := p.doctor("--repair", "--yes")
	require.Zero(t, code, "%s%s", out, errs)
	require.Contains(t, out, "repair: undo the last write of the store: ")
	require.Contains(t, errs, "is undone")
	p.requireClean()
}
