// Package doctor holds the store against the kernel and the disk: records, directories, volumes and their file systems,
// devices, mounts, loop devices, and the state of the pool. It finds what a crash, a broken disk or a hand that slipped has
// left, says what each thing means and how it is cured, and cures most of it.
//
// [Examine] changes nothing. Without a daemon it looks at what lies there, under the lock of the store that its caller has
// opened read-only. Beside a daemon it runs in the daemon, and whatever an operation under way may be the reason for is
// looked at again when that operation has ended ([Live]): it finds nothing that a daemon at work does for a moment.
//
// [Repair] is for a root that no daemon has. Most cures are what each start of the daemon does, so they are left to one
// start and one stop; the others are carried out before it.
//
// Nothing here decides what lives: the store does. A record whose content is lost stays, unless who repairs says of it that
// it shall go.
package doctor
