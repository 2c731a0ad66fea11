package main

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/lamina-snapshotter/lamina/admin"
)

// A fakeSource answers what the test set it to, and keeps what it was told to do.
type fakeSource struct {
	status    admin.Status
	snapshots []admin.Snapshot
	space     []admin.Space
	inspected map[string]admin.Inspection // by keys
	err       error
	told      []string
}

func (f *fakeSource) Status(context.Context) (admin.Status, error) { return f.status, f.err }

func (f *fakeSource) Snapshots(_ context.Context, each func(admin.Snapshot) error) error {
	for _, s := range f.snapshots {
		if err := each(s); err != nil {
			return err
		}
	}
	return f.err
}

func (f *fakeSource) Inspect(_ context.Context, name, key string) (admin.Inspection, error) {
	for _, s := range f.snapshots {
		if s.Name == name && s.Key == key {
			i := f.inspected[key]
			i.Snapshot = s
			return i, f.err
		}
	}
	return admin.Inspection{}, fmt.Errorf("%s has no %q: %w", name, key, errdefs.ErrNotFound)
}

func (f *fakeSource) Space(_ context.Context, progress func(done, total int), each func(admin.Space) error) error {
	for i, s := range f.space {
		if err := each(s); err != nil {
			return err
		}
		if progress != nil {
			progress(i+1, len(f.space))
		}
	}
	return f.err
}

func (f *fakeSource) tell(what string) error {
	f.told = append(f.told, what)
	return f.err
}

func (f *fakeSource) Cleanup(context.Context) error { return f.tell("cleanup") }

func (f *fakeSource) GrowPool(_ context.Context, bytes uint64) (admin.Pool, error) {
	return admin.Pool{Data: admin.Fill{Used: 1 << 30, Total: bytes}}, f.tell(fmt.Sprint("grow ", bytes))
}

func (f *fakeSource) TrimPool(context.Context) (uint64, error) { return 3 << 20, f.tell("trim") }

func (f *fakeSource) AddDevice(_ context.Context, device string) error {
	return f.tell("add " + device)
}
