// Package quota speaks the kernel's interface to project quotas: a file system that has them counts the blocks and the inodes of
// all files with the same project id together, and may bound them. One set of requests serves ext4 and xfs: those of xfs,
// which the kernel translates for ext4 (fs/quota/quota.c).
//
// A project id belongs to a file. A directory with the flag FS_XFLAG_PROJINHERIT gives its own to what is made in it, and what
// has another cannot be renamed or linked into it (EXDEV).
//
// It is the only unsafe code of the union backend.
package quota
