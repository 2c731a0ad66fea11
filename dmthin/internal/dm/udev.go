package dm

// udevCookie is the event_nr of the requests for which the kernel sends a uevent: resume and remove. The kernel passes it
// on as DM_COOKIE. Its high 16 bits are flags for the udev rules of device mapper, its low 16 bits name a semaphore that
// the rules signal when they are done. We wait for nobody and have no semaphore, which is what 0 says to
// "dmsetup udevcomplete" ("this one carries flags to control udev rules only", tools/dmsetup.c in LVM2). Without udevd it
// means nothing.
//
// The flags, from libdm/libdevmapper.h in LVM2:
//
//   - PRIMARY_SOURCE: the event is of a tool that drives the device; without it the rules take the event for an
//     artificial one and repeat what they knew before.
//
//   - DISABLE_SUBSYSTEM_RULES, DISABLE_DISK_RULES, DISABLE_OTHER_RULES: no blkid, LVM, multipath or mdadm looks into the
//     device. A volume that a scanner holds open cannot be removed (EBUSY), and what lies in a container's volume must
//     not be taken for the host's.
//
//   - DISABLE_DM_RULES: the links in /dev/mapper are not udevd's. It is behind with its events, and names what it finds at a
//     number when it comes to one; then the removal of a device takes the link of the next that has its number, until a
//     later event puts it back. [Control.MakeNode] and [Control.RemoveNode] keep them, as libdm does with --noudevrules.
const udevCookie = (udevDisableDM | udevDisableSubsystem | udevDisableDisk | udevDisableOther | udevPrimarySource) << 16

const (
	udevDisableDM        = 0x01
	udevDisableSubsystem = 0x02
	udevDisableDisk      = 0x04
	udevDisableOther     = 0x08
	udevPrimarySource    = 0x40
)
