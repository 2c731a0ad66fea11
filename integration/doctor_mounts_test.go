package integration

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/doctor"
	"github.com/lamina-snapshotter/lamina/metadata"
)

// TestDoctorOfMounts finds what is mounted of snapshots that are gone, in other
// mount namespaces too, and who has it mounted.
func TestDoctorOfMounts(t *testing.T) {
	requireRoot(t)
	p := unionPatient(t)
	dir := mustTempDir(t)
	end := mountInNamespace(t, p.dirOf("active"), dir)
	p.requireClean()
	active := p.record("active")
	p.forget("active")
	found := p.findings()
	require.Equal(t, []doctor.Code{doctor.TrashLeft}, codes(found))
	require.Len(t, found[0].Holders, 1)
	require.Contains(t, found[0].Holders[0], "has it mounted at "+dir)

	require.NoError(t, os.RemoveAll(filepath.Join(p.root, "union", fmt.Sprint(active.ID))))
	p.withStore(metadata.Options{}, func(s *metadata.Store) error { return s.Forget(t.Context(), active.Link()) })
	found = p.findings()
	require.Equal(t, []doctor.Code{doctor.MountStale}, codes(found))
	require.Equal(t, dir, found[0].Object)
	require.Contains(t, found[0].Holders[0], "has it mounted at "+dir)
	end()
	p.requireClean()
}

// mountInNamespace has a process mount a directory in a mount namespace of its own,
// and returns what ends it.
func mountInNamespace(t *testing.T, what, at string) (end func()) {
	t.Helper()
	cmd := exec.Command("unshare", "--mount", "/bin/sh", "-ec", `mount --bind "$0" "$1"; echo; read line`, what, at)
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	_, err = out.Read(make([]byte, 1))
	require.NoError(t, err)
	end = sync.OnceFunc(func() {
		in.Close()
		_ = cmd.Wait() // the end of its input is an error of read
	})
	t.Cleanup(end)
	return end
}

// TestDoctorOfTrashInUse asks a daemon, which says who uses what was removed; it is
// no fault, and is over when he lets go.
func TestDoctorOfTrashInUse(t *testing.T) {
	requireRoot(t)
	d := startDaemon(t, mustTempDir(t), union)
	h := d.client(lamina.DefaultName)
	h.prepare("used", "", nil)
	p := patient{t, d.dir, d.root()}
	found, err := filepath.Glob(filepath.Join(p.root, "union", "[0-9]*"))
	require.NoError(t, err)
	require.Len(t, found, 1)
	dir := mustTempDir(t)
	end := mountInNamespace(t, found[0], dir)
	require.NoError(t, h.Remove(t.Context(), "used"))
	findings := p.findings()
	require.Equal(t, []doctor.Code{doctor.TrashWaiting}, codes(findings))
	require.Equal(t, found[0], findings[0].Object)
	require.Len(t, findings[0].Holders, 1)
	require.Contains(t, findings[0].Holders[0], "has it mounted at "+dir)
	end()
	require.NoError(t, poll(5*time.Second, func() error {
		_, err := os.Stat(found[0])
		if err == nil {
			return errors.New("it is still there")
		}
		return nil
	}))
	p.requireClean()
	d.stop()
}
