package image

import (
	"archive/tar"
	"strings"
	"time"
)

// capNetRaw is the value of security.capability for cap_net_raw+ep: struct
// vfs_cap_data of revision 2, in include/uapi/linux/capability.h.
const capNetRaw = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// writeTree writes the tree under lamina/ that the layers above change.
//
// all evaluates every step before it looks at the first error. That is safe
// here: a tar.Writer that has failed fails each later call too.
func writeTree(w *tarWriter) error {
	return all(
		w.dir("lamina"),
		writeToChange(w),
		writeLinks(w),
		writeAttributes(w),
		writeSpecial(w),
		writeNames(w),
	)
}

// writeToChange writes what later layers delete, replace or modify.
func writeToChange(w *tarWriter) error {
	return all(
		w.dir("lamina/gone"),
		w.text("lamina/gone/file", "deleted by a whiteout\n"),
		w.symlink("lamina/gone/link", "file"),
		w.dir("lamina/gone/dir"),
		w.text("lamina/gone/dir/child", "deleted with its directory\n"),
		w.text("lamina/gone/stays", "its neighbours go, it stays\n"),
		w.dir("lamina/again"),
		w.text("lamina/again/file", "deleted, then made again\n"),
		w.dir("lamina/replaced", mode(0o750), owner(1000, 1000)),
		w.text("lamina/replaced/old", "hidden by the opaque directory\n"),
		w.text("lamina/replaced/both", "in both, the old one\n"),
		w.dir("lamina/replaced/sub"),
		w.text("lamina/replaced/sub/old", "hidden too\n"),
		w.text("lamina/file-to-dir", "a directory comes here\n"),
		w.dir("lamina/dir-to-file"),
		w.text("lamina/dir-to-file/child", "a file comes over my directory\n"),
		w.dir("lamina/dir-to-link"),
		w.text("lamina/dir-to-link/child", "a symlink comes over my directory\n"),
		w.symlink("lamina/link-to-dir", "gone"),
		w.symlink("lamina/link-to-file", "/etc/passwd"),
		w.text("lamina/grows", "first line\n"),
		w.text("lamina/mode", "only the mode changes\n"),
		w.text("lamina/owner", "only the owner changes\n"),
		w.text("lamina/time", "only the time changes\n"),
		w.text("lamina/attribute", "only the attribute changes\n", xattr("user.lamina.change", "before")),
		w.dir("lamina/dir-mode"),
		w.text("lamina/dir-mode/child", "my directory changes mode and owner\n"),
	)
}

func writeLinks(w *tarWriter) error {
	return all(
		w.dir("lamina/links"),
		w.dir("lamina/links/deep"),
		w.text("lamina/links/a", "one inode, three names\n"),
		w.link("lamina/links/b", "lamina/links/a"),
		w.link("lamina/links/deep/c", "lamina/links/a"),
		w.text("lamina/links/one", "one of two, the other is deleted\n"),
		w.link("lamina/links/two", "lamina/links/one"),
		w.symlink("lamina/links/absolute", "/lamina/links/a"),
		w.symlink("lamina/links/relative", "../links/a"),
		w.symlink("lamina/links/dangling", "nowhere/at/all"),
		w.symlink("lamina/links/loop", "loop"),
		w.symlink("lamina/links/owned", "a", owner(1234, 4321)),
	)
}

func writeAttributes(w *tarWriter) error {
	return all(
		w.dir("lamina/attributes", xattr("user.lamina.dir", "on a directory")),
		w.text("lamina/attributes/user", "user attributes\n",
			xattr("user.lamina.text", "text"), xattr("user.lamina.bytes", "\x00\x01\xfe\xff"), xattr("user.lamina.empty", "")),
		w.text("lamina/attributes/capability", "#!/bin/sh\n", mode(0o755), xattr("security.capability", capNetRaw)),
		w.text("lamina/attributes/setuid", "#!/bin/sh\n", mode(0o4755)),
		w.text("lamina/attributes/setgid", "#!/bin/sh\n", mode(0o2755), owner(0, 50)),
		w.text("lamina/attributes/setuid-of-another", "#!/bin/sh\n", mode(0o6755), owner(1000, 1000)),
		w.dir("lamina/attributes/setgid-dir", mode(0o2775), owner(0, 50)),
		w.dir("lamina/attributes/sticky-dir", mode(0o1777)),
		w.dir("lamina/attributes/all-dir", mode(0o7777)),
		w.dir("lamina/attributes/closed-dir", mode(0)),
		w.text("lamina/attributes/closed", "no mode bit at all\n", mode(0)),
		w.text("lamina/attributes/far-owner", "ids beyond 16 bits\n", owner(1000000, 2147483646)),
		w.text("lamina/attributes/nanoseconds", "a time with a fraction\n", mtime(created.Add(123456789))),
		w.text("lamina/attributes/epoch", "the first second\n", mtime(time.Unix(0, 0))),
	)
}

func writeSpecial(w *tarWriter) error {
	return all(
		w.dir("lamina/special"),
		w.device("lamina/special/char", tar.TypeChar, 1, 3, mode(0o666)),
		w.device("lamina/special/block", tar.TypeBlock, 7, 200, owner(0, 6)),
		w.device("lamina/special/fifo", tar.TypeFifo, 0, 0, mode(0o640)),
	)
}

func writeNames(w *tarWriter) error {
	long := strings.Repeat("n", 255)
	deep := "lamina/names/deep"
	err := all(
		w.dir("lamina/names"),
		w.text("lamina/names/"+long, "the longest name\n"),
		w.text("lamina/names/with space", "space\n"),
		w.text("lamina/names/with\nnewline", "newline\n"),
		w.text("lamina/names/ümläut-文字", "UTF-8\n"),
		w.text("lamina/names/.hidden", "dot\n"),
		w.text("lamina/names/comma,colon:equals=", "what mount options are split at\n"),
		w.text("lamina/names/empty", ""),
		w.dir("lamina/names/empty-dir"),
		w.dir(deep),
	)
	for range 16 {
		deep += "/" + strings.Repeat("d", 100)
		err = all(err, w.dir(deep))
	}
	return all(err, w.text(deep+"/bottom", "a path of more than 1600 bytes\n"))
}
