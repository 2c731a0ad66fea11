package snapshotter_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/metadata"
	"github.com/lamina-snapshotter/lamina/snapshotter"
	"github.com/lamina-snapshotter/lamina/snapshotter/backendtest"
)

// volumes is the plain backend as one of volumes: with templates, and with something that runs for what is mounted.
type volumes struct {
	*backendtest.Dirs

	usual string // name of the template of a base without labels

	mu      sync.Mutex
	made    []string // templates, in order
	fail    error    // of the next MakeTemplate
	running map[uint64]bool
	asked   []snapshotter.Content // the chain of the last Usage
}

func (v *volumes) Template(labels map[string]string) (string, error) {
	if size, ok := labels["size"]; ok {
		if size == "bad" {
			return "", fmt.Errorf("size: %w", errdefs.ErrInvalidArgument)
		}
		return size, nil
	}
	return v.usual, nil
}

func (v *volumes) MakeTemplate(ctx context.Context, id uint64, name string) (uint64, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.made = append(v.made, name)
	size, err := v.Make(ctx, snapshotter.Content{ID: id}, nil, nil)
	if failed := v.fail; failed != nil {
		v.fail = nil
		return 0, failed
	}
	return size, err
}

func (v *volumes) Mounts(ctx context.Context, chain []snapshotter.Content, writable bool, labels map[string]string) ([]mount.Mount, error) {
	v.mu.Lock()
	v.running[chain[0].ID] = true
	v.mu.Unlock()
	return v.Dirs.Mounts(ctx, chain, writable, labels)
}

// Freeze knows a usage, as a backend of volumes does: 77 bytes.
func (v *volumes) Freeze(ctx context.Context, chain []snapshotter.Content) (*snapshots.Usage, error) {
	if err := v.Release(ctx, chain[0].ID); err != nil {
		return nil, err
	}
	_, err := v.Dirs.Freeze(ctx, chain)
	return &snapshots.Usage{Size: 77}, err
}

func (v *volumes) Release(_ context.Context, id uint64) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.running, id)
	return nil
}

func (v *volumes) Usage(ctx context.Context, chain []snapshotter.Content) (snapshots.Usage, error) {
	v.asked = chain
	return v.Dirs.Usage(ctx, chain)
}

func (v *volumes) runs(id uint64) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.running[id]
}

// volumeHost is a host over a volumes.
type volumeHost struct {
	*host
	volumes *volumes
}

func mustOpenVolumes(t *testing.T, root, template string) *volumeHost {
	t.Helper()
	return mustServe(t, root, &volumes{usual: template})
}

func mustServe(t *testing.T, root string, v *volumes) *volumeHost {
	t.Helper()
	return mustServeAs(t, root, v, v)
}

// mustServeAs serves a volumes as the backend that it is a part of.
func mustServeAs(t *testing.T, root string, v *volumes, b snapshotter.Backend) *volumeHost {
	t.Helper()
	store, err := metadata.Open(filepath.Join(root, "lamina.db"), metadata.Options{})
	require.NoError(t, err)
	v.Dirs, v.running = backendtest.NewDirs(filepath.Join(root, "dirs")), map[uint64]bool{}
	set, err := snapshotter.Open(t.Context(), snapshotter.Config{
		Store: store, Backends: map[metadata.Medium]snapshotter.Backend{metadata.Volume: b},
	})
	require.NoError(t, err)
	t.Cleanup(func() { _ = set.Close() })
	sn, err := set.Snapshotter("lamina", metadata.Volume)
	require.NoError(t, err)
	return &volumeHost{&host{Snapshotter: sn, set: set, store: store, dirs: v.Dirs, root: root}, v}
}

func (h *volumeHost) reopenWith(t *testing.T, template string) *volumeHost {
	t.Helper()
	require.NoError(t, h.set.Close())
	return mustOpenVolumes(t, h.root, template)
}

// device returns the number of a snapshot's content.
func (h *volumeHost) device(t *testing.T, name, key string) uint64 {
	t.Helper()
	sn, err := h.store.Get(name, key)
	require.NoError(t, err)
	return sn.Link().Content()
}

// Many bases at once are made upon one template, which nobody sees.
func TestBasesShareTemplate(t *testing.T) {
	h := mustOpenVolumes(t, t.TempDir(), "usual")
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			if _, err := h.Prepare(t.Context(), fmt.Sprint(i), ""); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	_, err := h.View(t.Context(), "empty", "")
	require.NoError(t, err)
	require.Equal(t, []string{"usual"}, h.volumes.made)
	info, err := h.Stat(t.Context(), "0")
	require.NoError(t, err)
	require.Empty(t, info.Parent)
	shown := 0
	require.NoError(t, h.Walk(t.Context(), func(context.Context, snapshots.Info) error { shown++; return nil }))
	require.Equal(t, 17, shown)
	require.Len(t, h.contents(t), 17, "16 and the template")
	h.mustCheck(t)
}

// A template goes when it is neither the usual one nor in use.
func TestUnusedTemplatesGo(t *testing.T) {
	h := mustOpenVolumes(t, t.TempDir(), "usual")
	h.layer(t, "a", "")
	for range 3 {
		_, err := h.Prepare(t.Context(), "large", "", snapshots.WithLabels(map[string]string{"size": "large"}))
		require.NoError(t, err)
		h.wantTemplates(t, "large", "usual")
		require.NoError(t, h.Remove(t.Context(), "large"))
		h.wantTemplates(t, "usual")
	}
	h = h.reopenWith(t, "other")
	h.wantTemplates(t, "other", "usual")
	require.NoError(t, h.Remove(t.Context(), "a"))
	h.wantTemplates(t, "other")
	h = h.reopenWith(t, "third")
	h.wantTemplates(t, "third")
	require.NoError(t, h.Cleanup(t.Context()))
	require.Len(t, h.contents(t), 1)
	h.mustCheck(t)
}

// wantTemplates waits until these are the templates.
func (h *volumeHost) wantTemplates(t *testing.T, want ...string) {
	t.Helper()
	require.EventuallyWithT(t, func(t *assert.CollectT) {
		var got []string
		require.NoError(t, h.store.Walk(context.Background(), metadata.Templates, func(sn metadata.Snapshot) error {
			got = append(got, sn.Key)
			return nil
		}))
		require.ElementsMatch(t, want, got)
	}, tWait, tTick)
}

// What no backend serves any more is left alone, and is no error of those that are served.
func TestVolumesWithoutBackend(t *testing.T) {
	h := mustOpenVolumes(t, t.TempDir(), "usual")
	h.layer(t, "a", "")
	require.NoError(t, h.set.Close())
	store, err := metadata.Open(filepath.Join(h.root, "lamina.db"), metadata.Options{})
	require.NoError(t, err)
	_, err = store.Remove(t.Context(), "lamina", "a")
	require.NoError(t, err)
	require.NoError(t, store.Close())
	plain := &host{root: h.root, dirs: backendtest.NewDirs(filepath.Join(h.root, "other"))}
	plain.store, err = metadata.Open(filepath.Join(h.root, "lamina.db"), metadata.Options{})
	require.NoError(t, err)
	plain.set, err = snapshotter.Open(t.Context(), snapshotter.Config{
		Store: plain.store, Backends: map[metadata.Medium]snapshotter.Backend{metadata.Directory: plain.dirs},
	})
	require.NoError(t, err)
	plain.Snapshotter, err = plain.set.Snapshotter("plain", metadata.Directory)
	require.NoError(t, err)
	require.NoError(t, plain.Cleanup(t.Context()))
	require.NoError(t, plain.set.Close())

	h = mustOpenVolumes(t, h.root, "usual")
	require.NoError(t, h.Cleanup(t.Context()))
	require.Len(t, h.contents(t), 1, "the template")
}

// A template that cannot be made leaves nothing, and is made for the next base.
func TestTemplateFails(t *testing.T) {
	h := mustOpenVolumes(t, t.TempDir(), "usual")
	size := func(size string) snapshots.Opt { return snapshots.WithLabels(map[string]string{"size": size}) }
	h.volumes.fail = errors.New("no mkfs")
	_, err := h.Prepare(t.Context(), "a", "", size("large"))
	require.ErrorContains(t, err, "no mkfs")
	require.Len(t, h.contents(t), 1, "the usual template")
	_, err = h.Prepare(t.Context(), "a", "", size("bad"))
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	_, err = h.Prepare(t.Context(), "a", "", size("large"))
	require.NoError(t, err)
	require.Equal(t, []string{"usual", "large", "large"}, h.volumes.made)
}

// A start goes on without its template: in a pool that is full what is there must be removable.
func TestStartWithoutTemplate(t *testing.T) {
	h := mustServe(t, t.TempDir(), &volumes{usual: "usual", fail: errors.New("full")})
	require.Empty(t, h.contents(t))
	h.layer(t, "a", "")
	require.Equal(t, []string{"usual", "usual"}, h.volumes.made)
}

// A template that a repair of the pool has lost is made again, unless a base is upon it.
func TestLostTemplate(t *testing.T) {
	h := mustOpenVolumes(t, t.TempDir(), "usual")
	lost := h.device(t, metadata.Templates, "usual")
	require.NoError(t, h.set.Close())
	require.NoError(t, os.RemoveAll(filepath.Join(h.root, "dirs", fmt.Sprint(lost))))
	h = mustOpenVolumes(t, h.root, "usual")
	require.Equal(t, []string{"usual"}, h.volumes.made)
	h.layer(t, "a", "")
	h.mustCheck(t)
}

// A base that fails leaves no template that nobody uses.
func TestFailedBaseLeavesNoTemplate(t *testing.T) {
	h := mustOpenVolumes(t, t.TempDir(), "usual")
	h.dirs.Before = func(_ context.Context, step string, _ uint64) error {
		if step == "mounts" {
			return errors.New("no mount")
		}
		return nil
	}
	_, err := h.Prepare(t.Context(), "a", "", snapshots.WithLabels(map[string]string{"size": "large"}))
	require.ErrorContains(t, err, "no mount")
	h.wantTemplates(t, "usual")
}

// Neither does one that the store refuses, though its content and its mounts were there.
func TestRefusedBaseLeavesNoTemplate(t *testing.T) {
	h := mustOpenVolumes(t, t.TempDir(), "usual")
	labels := map[string]string{"size": "large", "l": string(make([]byte, 5000))}
	_, err := h.Prepare(t.Context(), "a", "", snapshots.WithLabels(labels))
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	require.Equal(t, []string{"usual", "large"}, h.volumes.made)
	h.wantTemplates(t, "usual")
	_, err = h.View(t.Context(), "v", "", snapshots.WithLabels(labels))
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	require.Equal(t, []string{"usual", "large", "large"}, h.volumes.made)
	h.wantTemplates(t, "usual")
	require.NoError(t, h.Cleanup(t.Context()))
	require.Len(t, h.contents(t), 1)
	h.mustCheck(t)
}

// What a view shows runs as long as there is one; after a start runs what snapshots need, and nothing else.
func TestViewsRunTheirParent(t *testing.T) {
	h := mustOpenVolumes(t, t.TempDir(), "usual")
	h.layer(t, "base", "")
	base := h.device(t, "lamina", "base")
	require.False(t, h.volumes.runs(base))
	for _, key := range []string{"v1", "v2"} {
		_, err := h.View(t.Context(), key, "base")
		require.NoError(t, err)
	}
	require.NoError(t, h.Remove(t.Context(), "v1"))
	_, err := h.Prepare(t.Context(), "active", "base")
	require.NoError(t, err)
	active := h.device(t, "lamina", "active")

	h = h.reopenWith(t, "usual")
	require.Eventually(t, func() bool { return h.volumes.runs(base) && h.volumes.runs(active) }, tWait, tTick)
	require.NoError(t, h.Remove(t.Context(), "v2"))
	require.Eventually(t, func() bool { return !h.volumes.runs(base) }, tWait, tTick)
	require.True(t, h.volumes.runs(active))
}

// A view that cannot be recorded leaves nothing running.
func TestFailedViewRunsNothing(t *testing.T) {
	h := mustOpenVolumes(t, t.TempDir(), "usual")
	h.layer(t, "base", "")
	_, err := h.View(t.Context(), "v\x00", "base", snapshots.WithLabels(map[string]string{"": string(make([]byte, 5000))}))
	require.Error(t, err)
	base := h.device(t, "lamina", "base")
	require.Eventually(t, func() bool { return !h.volumes.runs(base) }, tWait, tTick)
}

// Usage is asked for the whole chain, down to the template.
func TestUsageOfVolume(t *testing.T) {
	h := mustOpenVolumes(t, t.TempDir(), "usual")
	mounts, err := h.Prepare(t.Context(), "a", "")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(source(mounts), "f"), make([]byte, 1<<20), 0o644))
	usage, err := h.Usage(t.Context(), "a")
	require.NoError(t, err)
	require.GreaterOrEqual(t, usage.Size, int64(1<<20))
	require.Equal(t, []snapshotter.Content{
		{ID: h.device(t, "lamina", "a")}, {ID: h.device(t, metadata.Templates, "usual")},
	}, h.volumes.asked)
	h.volumes.asked = nil
	require.NoError(t, h.Commit(t.Context(), "A", "a"))
	usage, err = h.Usage(t.Context(), "A")
	require.NoError(t, err)
	require.Equal(t, snapshots.Usage{Size: 77}, usage, "what Freeze said")
	require.Empty(t, h.volumes.asked)
}

// What is left of a base that failed, and cannot be deleted at once, is deleted without a restart, and its number is free.
func TestFailedBaseIsDeletedLater(t *testing.T) {
	h := mustOpenVolumes(t, t.TempDir(), "usual")
	var failing atomic.Bool
	failing.Store(true)
	h.dirs.Before = func(_ context.Context, step string, _ uint64) error {
		if failing.Load() && (step == "mounts" || step == "delete") {
			return errors.New("no " + step)
		}
		return nil
	}
	_, err := h.Prepare(t.Context(), "a", "")
	require.ErrorContains(t, err, "no mounts")
	require.Len(t, h.contents(t), 2, "the template, and what is left")
	h.mustCheck(t)
	failing.Store(false)
	require.NoError(t, h.Cleanup(t.Context()))
	require.Len(t, h.contents(t), 1)
	trash, err := h.store.Trash(t.Context())
	require.NoError(t, err)
	require.Empty(t, trash)
	h.mustCheck(t)
}
