package overlayaufs

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/overlayaufs/internal/quota"
)

func TestLimitsOfLabels(t *testing.T) {
	b := &Backend{}
	b.projects.maxSize = 1 << 30
	for name, tt := range map[string]struct {
		labels map[string]string
		want   quota.Limits
		bad    bool
	}{
		"none":       {nil, quota.Limits{Bytes: 1 << 30}, false},
		"size":       {map[string]string{snapshots.LabelSnapshotMaxSize: "4096"}, quota.Limits{Bytes: 4096}, false},
		"rounded up": {map[string]string{snapshots.LabelSnapshotMaxSize: "4097"}, quota.Limits{Bytes: 4608}, false},
		"inodes":     {map[string]string{LabelMaxInodes: "7"}, quota.Limits{Bytes: 1 << 30, Inodes: 7}, false},
		"unpacked":   {map[string]string{snapshots.LabelSnapshotRef: "sha256:a"}, quota.Limits{}, false},
		"unpacked and bounded": {
			map[string]string{snapshots.LabelSnapshotRef: "sha256:a", snapshots.LabelSnapshotMaxSize: "512"},
			quota.Limits{Bytes: 512},
			false,
		},
		"zero":     {map[string]string{snapshots.LabelSnapshotMaxSize: "0"}, quota.Limits{}, true},
		"negative": {map[string]string{LabelMaxInodes: "-1"}, quota.Limits{}, true},
		"unit":     {map[string]string{snapshots.LabelSnapshotMaxSize: "10GiB"}, quota.Limits{}, true},
		"too much": {map[string]string{snapshots.LabelSnapshotMaxSize: "9223372036854775808"}, quota.Limits{}, true},
	} {
		got, err := b.limitsOf(tt.labels)
		if errors.Is(err, errdefs.ErrInvalidArgument) != tt.bad || (err == nil) == tt.bad || got != tt.want {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestMissingQuota(t *testing.T) {
	for _, tt := range []struct {
		fs    string
		state quota.State
		err   error
		says  string
	}{
		{"ext4", quota.State{Counted: true, Enforced: true}, nil, ""},
		{"ext4", quota.State{Counted: true}, nil, "without the option prjquota"},
		{"ext4", quota.State{}, nil, "tune2fs -O project,quota"},
		{"xfs", quota.State{}, nil, "without the option pquota"},
		{"btrfs", quota.State{}, nil, "btrfs, which /root is on, has no project quotas"},
		{"ext4", quota.State{}, unix.EPERM, "CAP_SYS_ADMIN"},
		{"ext4", quota.State{}, unix.EIO, "not known: input/output error"},
	} {
		got := missingQuota("/root", tt.fs, tt.state, tt.err)
		if !strings.Contains(got, tt.says) || (got == "") != (tt.says == "") {
			t.Errorf("%+v: %q", tt, got)
		}
	}
}

func TestQuotaSettings(t *testing.T) {
	if err := (Config{Quota: "strict", ProjectBase: maxProjectBase}).Validate(); err != nil {
		t.Error(err)
	}
	for says, cfg := range map[string]Config{"union.quota": {Quota: "hard"}, "union.project_base": {ProjectBase: maxProjectBase + 1}} {
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", says, err)
		}
	}
	if err := DefaultConfig().Validate(); err != nil {
		t.Error(err)
	}
}

// A root without project quotas says so where a limit is asked for and must be kept, and makes the layer otherwise.
func TestLimitsWithoutQuotas(t *testing.T) {
	asked := map[string]string{LabelMaxInodes: "7"}
	for mode, refused := range map[string]bool{"auto": false, "off": false, "strict": true} {
		b := tUnprobed(t, Config{Quota: mode})
		b.projects.missing, b.projects.strict = "there are none", mode == quotaStrict
		_, err := b.Make(t.Context(), Content{ID: 1}, nil, asked)
		_, resizeErr := b.Resize(t.Context(), Content{ID: 1}, nil, asked)
		for _, err := range []error{err, resizeErr} {
			if errors.Is(err, errdefs.ErrFailedPrecondition) != refused || (err != nil) != refused {
				t.Errorf("%s: %v", mode, err)
			}
		}
		if _, err := b.Make(t.Context(), Content{ID: 2}, nil, nil); err != nil {
			t.Error(err)
		}
	}
}

// A directory whose project cannot be asked for is not deleted: its project would be lost. One that is gone has none.
func TestReleaseUnknownProject(t *testing.T) {
	b := tUnprobed(t, Config{Root: "/proc"})
	b.projects.State, b.projects.first = quota.State{Counted: true}, defaultProjectBase
	if _, err := b.release(Content{ID: uint64(os.Getpid())}); !errors.Is(err, unix.ENOTTY) {
		t.Error(err)
	}
	if project, err := b.release(Content{ID: maxID}); project != 0 || err != nil {
		t.Error(project, err)
	}
}

// A container that lost its limits, as after a mount without the option for quotas, goes on in strict mode too, which says so once:
// it is started, also when a power cut took its directory, and labels that have nothing to do with limits can be changed.
func TestStrictTolerates(t *testing.T) {
	var said bytes.Buffer
	logger := logrus.New()
	logger.SetOutput(&said)
	ctx := log.WithLogger(t.Context(), logrus.NewEntry(logger))
	b := tUnprobed(t, Config{Quota: quotaStrict})
	b.projects.missing, b.projects.strict = "there are none", true
	asked, other := map[string]string{LabelMaxInodes: "7"}, map[string]string{LabelMaxInodes: "8"}
	resize := func(labels map[string]string, refused bool) {
		t.Helper()
		if _, err := b.Resize(ctx, Content{ID: 1}, nil, labels); errors.Is(err, errdefs.ErrFailedPrecondition) != refused || (err != nil) != refused {
			t.Error(err)
		}
	}
	resize(asked, true)
	for range 2 { // the directory is there, or is lost
		if _, err := b.Mounts(ctx, tChain(1), true, asked); err != nil {
			t.Fatal(err)
		}
		resize(asked, false)
		resize(other, true)
		if err := os.RemoveAll(b.path(1)); err != nil {
			t.Fatal(err)
		}
	}
	resize(nil, false)
	resize(asked, true)
	if text := said.String(); strings.Count(text, "level=error") != 1 || !strings.Contains(text, "not kept: there are none") {
		t.Error(text)
	}
}
