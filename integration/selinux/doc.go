// Package selinux tests what a kernel with SELinux makes of the mounts of both backends. They run in a guest of their own, whose
// kernel is told to start it, with a policy that denies nothing.
package selinux
