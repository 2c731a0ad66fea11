// Package dm speaks to the kernel's device mapper: it makes and removes devices, loads their tables, sends messages to
// their targets, and reads their state. It knows the ioctls of /dev/mapper/control and the thin targets' text, and
// decides nothing: what a pool or a volume is, and when to try again, is the caller's.
//
// A [Control] is one open control device. All its methods may be called from several goroutines at once: it has no lock,
// the kernel orders the requests. Each request but [Control.WaitEvent] is one ioctl, or one for each size of buffer until
// the reply fits.
//
// A request that the kernel refused is an [OpError], which unwraps to the errno. A name or uuid that cannot be sent is
// refused with EINVAL before the kernel sees it. What the kernel replies is checked before it is used.
//
// Sizes and offsets are in sectors of 512 bytes, unless their comment says otherwise.
//
// The kernel's side is drivers/md/dm-ioctl.c and include/uapi/linux/dm-ioctl.h; the thin targets are described in
// https://docs.kernel.org/admin-guide/device-mapper/thin-provisioning.html.
package dm
