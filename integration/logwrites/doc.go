// Package logwrites reads what the dm-log-writes target recorded of the writes
// to a block device, and does them again on another, up to any of them: what a
// disk holds when the power is cut there.
//
// The log has a write once the flush that covers it, or the write itself if it
// is a forced one (FUA), has ended; the writes that a flush covers come in the
// order in which they ended, and then the flush. So what comes before a mark in
// the log is what a disk must hold at that moment, and no more: what nobody
// flushed comes later. See drivers/md/dm-log-writes.c and
// Documentation/admin-guide/device-mapper/log-writes.rst.
package logwrites
