package dmthin

import (
	"fmt"
	"strings"
	"testing"

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
