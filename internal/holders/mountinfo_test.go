package holders

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func all(*Mount) bool { return true }

// Lines of three kernels: a root, a bind mount with a blank in its path, an overlay with a tag, a namespace.
const captured = `27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard,resuid=65534
65 27 254:0 /tmp/a\040b/fs //deleted /mnt/c\011d rw,relatime shared:1 master:7 - ext4 /dev/vda rw
`

func TestParseMounts(t *testing.T) {
	list, err := parseMounts(strings.NewReader(strings.ReplaceAll(captured, " //deleted", "")+
		`91 27 0:52 / /run/x rw,relatime - overlay none rw,lowerdir=2/fs:1/fs,upperdir=/r/3/fs,workdir=/r/3/work,index=off
92 27 0:4 mnt:[4026532211] /run/ns rw shared:3 - nsfs none rw
`), all)
	require.NoError(t, err)
	require.Equal(t, []Mount{
		{ID: 27, Major: 254, Root: "/", MountPoint: "/", FSType: "ext4", Source: "/dev/vda", Options: "rw,discard,resuid=65534"},
		{ID: 65, Major: 254, Root: "/tmp/a b/fs", MountPoint: "/mnt/c\td", FSType: "ext4", Source: "/dev/vda", Options: "rw"},
		{ID: 91, Minor: 52, Root: "/", MountPoint: "/run/x", FSType: "overlay", Source: "none", Options: "rw,lowerdir=2/fs:1/fs,upperdir=/r/3/fs,workdir=/r/3/work,index=off"},
		{ID: 92, Minor: 4, Root: "mnt:[4026532211]", MountPoint: "/run/ns", FSType: "nsfs", Source: "none", Options: "rw"},
	}, list)

	long := "1 1 0:1 / / rw - overlay none rw,lowerdir=" + strings.Repeat("/layer:", 100_000) + "/x\n"
	list, err = parseMounts(strings.NewReader(long), all)
	require.NoError(t, err, "longer than a scanner takes")
	require.Len(t, list, 1)

	for _, bad := range []string{"27", "27 1 254 / / rw - ext4 x rw", "27 1 254:0 / / rw ext4 x rw", "x 1 254:0 / / rw - ext4 x rw", "27 1 254:0 / / rw - ext4 x"} {
		_, err := parseMounts(strings.NewReader(bad), all)
		require.ErrorIs(t, err, errMountInfo, bad)
	}

	own, err := os.Open("/proc/self/mountinfo")
	require.NoError(t, err)
	defer own.Close()
	list, err = parseMounts(own, all)
	require.NoError(t, err)
	require.NotEmpty(t, list)
}

func FuzzParseMounts(f *testing.F) {
	f.Add(captured)
	f.Add("1 1 0:1 /\\04 /\\999 rw - a b \\")
	f.Fuzz(func(t *testing.T, text string) {
		list, err := parseMounts(strings.NewReader(text), all)
		if err == nil && len(list) > strings.Count(text, "\n")+1 {
			t.Errorf("%d mounts of %q", len(list), text)
		}
	})
}

// FuzzUses holds what any mount uses of a directory to what is in that.
func FuzzUses(f *testing.F) {
	for _, options := range []string{
		"rw,lowerdir=2/fs:1/fs,upperdir=/l/3/fs,workdir=/l/3/work", "lowerdir=../x:./..", "lowerdir+=/l/../etc", "lowerdir=/tmp/ovl-idmapped1/../../etc", `lowerdir=/l/\\054`,
		"upperdir=/l//x/../..",
	} {
		f.Add("overlay", options, "/l/3/fs", "/l/3/fs")
	}
	d := Directory{paths: []string{"/l", "/var/l"}, major: 8, root: "/l", namespace: 5}
	f.Fuzz(func(t *testing.T, typ, options, root, point string) {
		m := Mount{FSType: typ, Options: options, Root: root, MountPoint: point, Major: 8, Namespace: 5}
		if branches, err := branchesOf(t.Context(), t.TempDir(), options); err == nil {
			m.Branches = branches
		}
		for _, rel := range append(d.Uses(&m), d.UsesSurely(&m)...) {
			if !filepath.IsLocal(rel) {
				t.Errorf("%+v uses %q", m, rel)
			}
		}
	})
}

// What a mount uses of a directory is told by its options, its root and its mount point.
func TestUses(t *testing.T) {
	d := Directory{paths: []string{"/var/lib/l/union", "/data/l/union"}, major: 8, minor: 1, root: "/l/union", namespace: 5}
	for name, test := range map[string]struct {
		mount Mount
		uses  []string
	}{
		"bind":               {Mount{Major: 8, Minor: 1, Root: "/l/union/12/fs", FSType: "ext4"}, []string{"12/fs"}},
		"bind of a deleted":  {Mount{Major: 8, Minor: 1, Root: "/l/union/12/fs//deleted", FSType: "ext4"}, []string{"12/fs"}},
		"another disk":       {Mount{Major: 8, Minor: 2, Root: "/l/union/12/fs", FSType: "ext4"}, nil},
		"the directory":      {Mount{Major: 8, Minor: 1, Root: "/l/union", FSType: "ext4"}, nil},
		"a namesake":         {Mount{Major: 8, Minor: 1, Root: "/l/union2/12", FSType: "ext4"}, nil},
		"mounted in it":      {Mount{Namespace: 5, MountPoint: "/data/l/union/7/fs/proc", FSType: "proc"}, []string{"7/fs/proc"}},
		"mounted in another": {Mount{Namespace: 6, MountPoint: "/data/l/union/7/fs/proc", FSType: "proc"}, nil},
		"overlay": {
			Mount{FSType: "overlay", Options: "rw,lowerdir=/data/l/union/2/fs:/var/lib/l/union/1/fs,upperdir=/data/l/union/3/fs,workdir=/data/l/union/3/work"},
			[]string{"2/fs", "1/fs", "3/fs", "3/work"},
		},
		"view of relative names": {Mount{FSType: "overlay", Options: "ro,lowerdir=2/fs:1/fs"}, []string{"2/fs", "1/fs"}},
		"relative names below ours": {
			Mount{FSType: "overlay", Options: "rw,lowerdir=2/fs:./1/fs,upperdir=/data/l/union/3/fs,workdir=/data/l/union/3/work"},
			[]string{"3/fs", "3/work", "2/fs", "1/fs"},
		},
		"relative names below another's": {Mount{FSType: "overlay", Options: "rw,lowerdir=2/fs:1/fs,upperdir=/c/3/fs,workdir=/c/3/work"}, nil},
		"layers with a map": {
			Mount{FSType: "overlay", Options: "rw,lowerdir=/tmp/ovl-idmapped123/2/fs:/tmp/ovl-idmapped123/1/fs,upperdir=/data/l/union/3/fs,workdir=/data/l/union/3/work"},
			[]string{"3/fs", "3/work", "2/fs", "1/fs"},
		},
		"layers with a map, another's": {Mount{FSType: "overlay", Options: "rw,lowerdir=/tmp/ovl-idmapped123/2/fs:/tmp/ovl-idmapped123/1/fs,upperdir=/c/3/fs"}, nil},
		"layers one by one":            {Mount{FSType: "overlay", Options: "ro,lowerdir+=/data/l/union/2/fs,datadir+=/data/l/union/1/fs"}, []string{"2/fs", "1/fs"}},
	} {
		require.Equal(t, test.uses, d.Uses(&test.mount), name)
		if name == "view of relative names" { // whose they are cannot be told
			test.uses = nil
		}
		require.Equal(t, test.uses, d.UsesSurely(&test.mount), name)
	}
}

func TestSentence(t *testing.T) {
	require.Equal(t, "containerd-shim (pid 812) has it mounted at /run/x in mount namespace 4026532211",
		Holder{PID: 812, Command: "containerd-shim", MountPoint: "/run/x", Namespace: 4026532211}.String())
	require.Equal(t, "dd (pid 9) has /dev/dm-3 open; loop7 is a loop device on it; dm-4 is a device on it; and 2 more",
		Sentence([]Holder{{PID: 9, Command: "dd", File: "/dev/dm-3"}, {Loop: "loop7"}, {Device: "dm-4"}, {}, {}}))
}
