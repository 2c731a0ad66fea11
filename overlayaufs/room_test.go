package overlayaufs

import (
	"testing"

	"github.com/lamina-snapshotter/lamina/overlayaufs/internal/quota"
)

func TestRoom(t *testing.T) {
	const mib = 1 << 20
	for name, tt := range map[string]struct {
		limits, inUse, want quota.Limits
		has                 bool
	}{
		"no limits":      {quota.Limits{}, quota.Limits{Bytes: mib, Inodes: 9}, quota.Limits{}, true},
		"far below":      {quota.Limits{Bytes: 8 * mib, Inodes: 100}, quota.Limits{Bytes: 7 * mib, Inodes: 84}, quota.Limits{Bytes: 8 * mib, Inodes: 100}, true},
		"bytes":          {quota.Limits{Bytes: 8 * mib, Inodes: 100}, quota.Limits{Bytes: 8 * mib}, quota.Limits{Bytes: 9 * mib, Inodes: 100}, true},
		"inodes":         {quota.Limits{Bytes: 8 * mib, Inodes: 100}, quota.Limits{Inodes: 99}, quota.Limits{Bytes: 8 * mib, Inodes: 115}, true},
		"made":           {quota.Limits{Bytes: 512, Inodes: 1}, quota.Limits{}, quota.Limits{Bytes: mib, Inodes: 16}, true},
		"all room taken": {quota.Limits{Bytes: 8 * mib}, quota.Limits{Bytes: 72 * mib}, quota.Limits{Bytes: 72 * mib}, false},
		"no inode left":  {quota.Limits{Inodes: 100}, quota.Limits{Inodes: 5000}, quota.Limits{Inodes: 100 + 64*16}, false},
	} {
		count := quota.Count{Bytes: tt.inUse.Bytes, Inodes: tt.inUse.Inodes}
		got := withRoom(tt.limits, count)
		if got != tt.want || hasRoom(got, count) != tt.has {
			t.Errorf("%s: %+v, room %v", name, got, hasRoom(got, count))
		}
	}
}
