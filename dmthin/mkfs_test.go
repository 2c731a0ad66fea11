package dmthin

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Whoever changes the options changes formatVersion too, and both here.
func TestFormatVersion(t *testing.T) {
	var said strings.Builder
	fmt.Fprintln(&said, formatVersion)
	for _, fs := range filesystems() {
		m := fs.command("DEVICE", 10<<30)
		fmt.Fprintln(&said, m.env, m.program, strings.Join(m.args, " "))
	}
	require.Equal(t, `1
[MKE2FS_CONFIG=/dev/null] mke2fs -q -F -b 4096 -I 256 -i 16384 -m 0 `+
		`-O none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,`+
		`large_file,huge_file,dir_nlink,extra_isize,metadata_csum -J size=32 `+
		`-E nodiscard,lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0,resize=268435456 DEVICE
[] mkfs.xfs -q -f -K -b size=4096 -d agcount=4 -i size=512 -m crc=1,finobt=1,reflink=1 -l size=64m DEVICE
`, said.String())
}

// A program that is not there is named with its package, what one says that fails is passed on, and one that is at work
// ends with its context.
func TestRunFails(t *testing.T) {
	missing := mkfs{program: "mkfs.none", pkg: "noneprogs"}
	require.ErrorContains(t, missing.run(t.Context()), "there is no mkfs.none (apt-get install noneprogs)")
	require.ErrorIs(t, missing.run(t.Context()), exec.ErrNotFound)

	failing := mkfs{program: "sh", args: []string{"-c", "echo too small >&2; exit 3"}}
	require.EqualError(t, failing.run(t.Context()), "sh: exit status 3: too small")

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	slow := mkfs{program: "sleep", args: []string{"60"}}
	require.ErrorIs(t, slow.run(ctx), context.DeadlineExceeded)
}
