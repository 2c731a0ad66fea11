package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/admin"
	"github.com/lamina-snapshotter/lamina/metadata"
)

// tLockedRoot returns a root that a process has, as a daemon does.
func tLockedRoot(t *testing.T) (root string) {
	t.Helper()
	root = filepath.Join(t.TempDir(), "root")
	require.NoError(t, os.Mkdir(root, 0o700))
	store, err := metadata.Open(filepath.Join(root, "lamina.db"), metadata.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	return root
}

// A fakeRoot answers what the test set it to, and keeps what it was told to do.
type fakeRoot struct {
	status    admin.Status
	snapshots []admin.Snapshot
	space     []admin.Space
	mu        sync.Mutex                  // of space and err, where a test changes them meanwhile
	inspected map[string]admin.Inspection // by keys
	err       error
	partial   error // of space alone
	told      []string
}

func (f *fakeRoot) Status(context.Context) (admin.Status, error) { return f.status, f.err }

func (f *fakeRoot) Snapshots(_ context.Context, each func(admin.Snapshot) error) error {
	for _, s := range f.snapshots {
		if err := each(s); err != nil {
			return err
		}
	}
	return f.err
}

func (f *fakeRoot) Inspect(_ context.Context, name, key string) (admin.Inspection, error) {
	for _, s := range f.snapshots {
		if s.Name == name && s.Key == key {
			i := f.inspected[key]
			i.Snapshot = s
			return i, f.err
		}
	}
	return admin.Inspection{}, fmt.Errorf("%s has no %q: %w", name, key, errdefs.ErrNotFound)
}

func (f *fakeRoot) Space(_ context.Context, progress func(done, total int), each func(admin.Space) error) error {
	f.mu.Lock()
	space, err := f.space, cmp.Or(f.err, f.partial)
	f.mu.Unlock()
	for i, s := range space {
		if err := each(s); err != nil {
			return err
		}
		if progress != nil {
			progress(i+1, len(space))
		}
	}
	return err
}

func (f *fakeRoot) setSpace(err error, space ...admin.Space) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.space, f.err = space, err
}

func (f *fakeRoot) tell(what string) error {
	f.told = append(f.told, what)
	return f.err
}

func (f *fakeRoot) Cleanup(context.Context) error { return f.tell("cleanup") }

func (f *fakeRoot) GrowPool(_ context.Context, bytes uint64) (admin.Pool, error) {
	return admin.Pool{Data: admin.Fill{Used: 1 << 30, Total: bytes}}, f.tell(fmt.Sprint("grow ", bytes))
}

func (f *fakeRoot) TrimPool(context.Context) (uint64, error) { return 3 << 20, f.tell("trim") }

func (f *fakeRoot) AddDevice(_ context.Context, device string) error {
	return f.tell("add " + device)
}
