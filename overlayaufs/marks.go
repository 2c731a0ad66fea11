package overlayaufs

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// How a layer says what is deleted or hidden below it, and what becomes of it when the layer is translated. aufs's side is
// that of fs/aufs/whout.c, dentry.c and include/uapi/linux/aufs_type.h (github.com/sfjro/aufs-standalone, aufs6.1),
// overlayfs's that of Documentation/filesystems/overlayfs.rst and fs/overlayfs/overlayfs.h.
//
//	aufs                                        overlay
//	.wh.NAME, a regular file                    NAME, a character device 0:0
//	.wh.NAME in a directory that is united      nothing: ls would show the name of the device, as overlayfs
//	  with none below                             hides those of united directories alone
//	.wh..wh..opq, a regular file                overlay.opaque=y on the directory that it is in
//	whiteouts of each name that it has not,     overlay.opaque=y on a directory; or one upon a file upon a
//	  and a layer has below                       directory: see stack
//	.wh..wh.plnk, .orph, .aufs, others          nothing: they go
//	nothing                                     overlay.origin, .impure, .uuid, which go
//
// Of what aufs keeps for itself nothing is lost. .wh..wh.plnk has a further name for each file of the layer that was copied
// up and has hard links below (pseudo-links, fs/aufs/plink.c). aufs knows them for as long as it is mounted, and at the next
// mount the links below are what they were, as in overlayfs. .wh..wh.orph has files that
// were open when they were removed, .wh..wh.NAME.0a1b is a directory that is being removed, .wh..wh.aufs what whiteouts are links to.
//
// What cannot be said in the other form is refused, before anything is changed:
//
//	aufs: .wh..wh..dr.*, .wh..wh.hino           a directory that was renamed (the option dirren)
//	aufs: .wh. alone, .wh.. and .wh...          nothing that aufs makes
//	aufs: a whiteout that is no regular file    EIO in aufs
//	aufs: a whiteout that is not empty          what a user has put into the branch
//	aufs: other .wh..wh.NAME                    the same; aufs's have four digits at the end, or are those of aufsOwn in the root
//	aufs: .wh.NAME beside a NAME                EIO in aufs, as after a power cut: NAME was just made, or just removed
//	aufs: a device 0:0, an overlay.* attribute  it would become a mark
//	overlay: a name that begins with .wh.       it would become a mark
//	overlay: a name of more than 242 bytes      ENAMETOOLONG in aufs, of a directory and of a deletion too
//	overlay: overlay.redirect, .metacopy        the content is elsewhere, under another name or in a layer below
//	overlay: overlay.nlink                      hard links that the index keeps together (index=on)
//	overlay: overlay.protattr and all others    a protection that aufs has no place for; what this version does not know
const (
	aufsOwnPrefix = ".wh..wh."
	dirrenPrefix  = ".wh..wh..dr."
	dirrenInodes  = ".wh..wh.hino"

	// whiteoutMode is what aufs gives the file (WH_MASK).
	whiteoutMode = 0o444
)

// aufsNameMax is how many bytes a name may have in aufs (AUFS_MAX_NAMELEN in include/uapi/linux/aufs_type.h): that leaves room in the
// 255 of the file system below for those by which aufs renames and removes.
const aufsNameMax = 242

// A mark is what an entry of a directory is beside what it looks like.
type mark int

const (
	unmarked mark = iota
	whiteout      // of another name
	opaque        // of the directory that it is in
	private       // aufs's own file or directory
)

var (
	errDirren         = errors.New("aufs has renamed a directory without copying it (dirren), which the form of overlay cannot say")
	errTooLongForAufs = fmt.Errorf("aufs opens no name of more than %d bytes", aufsNameMax)
)

// aufsMark returns what an entry means in the form of aufs. Its type is one of unix.S_IF*.
func aufsMark(name string, typ uint32) (mark, error) {
	rest, marked := strings.CutPrefix(name, whPrefix)
	m := whiteout
	switch {
	case !marked:
		return unmarked, nil
	case name == dirrenInodes, strings.HasPrefix(name, dirrenPrefix):
		return unmarked, errDirren
	case name == opaqueName:
		m = opaque
	case strings.HasPrefix(name, aufsOwnPrefix):
		return private, nil
	case rest == "" || rest == "." || rest == "..":
		return unmarked, errors.New("aufs has no such whiteout")
	}
	if typ != unix.S_IFREG {
		return unmarked, errors.New("it has the name of a whiteout, and is no regular file")
	}
	return m, nil
}

// aufsTemp is the name under which aufs removes or replaces something (au_whtmp_lkup in fs/aufs/whout.c).
var aufsTemp = regexp.MustCompile(`(?s)^\.wh\.\.wh\..*\.[0-9a-f]{4}$`)

// checkMark refuses what has the name of a mark, and which aufs has not made. inTop says that it is in the root directory of the layer.
// Only an inspection asks: what has passed it is aufs's.
func checkMark(m mark, name string, size uint64, inTop bool) error {
	switch {
	case m == private && !aufsTemp.MatchString(name) && (!inTop || !slices.Contains(aufsOwn, name)):
		return errors.New("it has the name of one of aufs's own files, and is none that aufs makes; rename or remove it")
	case size > 0 && (m == whiteout || m == opaque || name == aufsOwn[0]):
		return errors.New("it has the name of a whiteout, and content, which a whiteout has not; rename or remove it")
	}
	return nil
}

// overlayMark returns what an entry means in the form of overlayfs, by its name and, of a device, its number.
func overlayMark(name string, typ uint32, rdev uint64) (mark, error) {
	switch {
	case strings.HasPrefix(name, whPrefix):
		return unmarked, fmt.Errorf("the form of aufs cannot say a name that begins with %s", whPrefix)
	case len(name) > aufsNameMax:
		return unmarked, errTooLongForAufs
	case isWhiteout(typ, rdev):
		return whiteout, nil
	}
	return unmarked, nil
}

// isWhiteout reports whether overlayfs takes a file of this type and number for a whiteout.
func isWhiteout(typ uint32, rdev uint64) bool { return typ == unix.S_IFCHR && rdev == 0 }

// The names of overlayfs's attributes, behind the prefix that a mount with or without userxattr has.
const (
	trustedPrefix = "trusted."
	userPrefix    = "user."

	overlayAttrs = "overlay."
	opaqueMark   = "overlay.opaque"
	opaqueValue  = "y"

	// timeAttr is ours: see keepTime.
	timeAttr = "lamina.mtime"
)

// An attrPlan is what the attributes of an entry mean when a layer of overlay's form is translated.
type attrPlan struct {
	opaque bool
	drop   []string
}

// planAttrs reads the names of an entry's attributes, as listxattr(2) returns them. get returns the value of one.
func planAttrs(list []byte, prefix string, dir bool, get func(name string) (string, error)) (p attrPlan, err error) {
	for name := range attrNames(list) {
		what, ok := strings.CutPrefix(name, prefix+overlayAttrs)
		if !ok {
			continue
		}
		switch what {
		case "origin", "impure", "uuid":
			p.drop = append(p.drop, name)
			continue
		case "opaque":
			if !dir {
				break
			}
			value, err := get(name)
			if err != nil {
				return p, err
			}
			if p.opaque = value == opaqueValue; p.opaque {
				continue
			}
		}
		return p, fmt.Errorf("%s%s", name, whyRefused[what])
	}
	return p, nil
}

// whyRefused says what an attribute is that aufs's form has no place for.
var whyRefused = map[string]string{
	"redirect": ": the directory was renamed and what is below has its old name (redirect_dir)",
	"metacopy": ": the content of the file is in a layer below (metacopy)",
	"nlink":    ": the hard links of the file are kept together by an index (index=on)",
	"protattr": ": the file is protected by chattr +i or +a",
}

// attrNames yields the names in a list of listxattr(2).
func attrNames(list []byte) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for name := range strings.SplitSeq(string(list), "\x00") {
			if name != "" && !yield(name) {
				return
			}
		}
	}
}
