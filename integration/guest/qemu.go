package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const qemuProgram = "qemu-system-x86_64"

// qemu is a guest in QEMU, with a kernel of its own choice and two processors.
// QEMU translates their instructions (TCG): it needs nothing of the host, and
// is slow.
type qemu struct{}

func (qemu) missing() error {
	if _, err := exec.LookPath(qemuProgram); err != nil {
		return fmt.Errorf("a guest in QEMU needs %s: run integration/setup guest-qemu", qemuProgram)
	}
	_, err := findKernel()
	return err
}

// Some 15 s more than UML, for the start.
func (qemu) margin() time.Duration { return 40 * time.Second }

func (qemu) adapt(s *spec) error {
	k, err := findKernel()
	if err != nil {
		return err
	}
	s.Kernel, s.Modules = k, filepath.Dir(k.Modules)
	s.Visible = append(s.Visible, s.Modules)
	return nil
}

// The serial ports by which QEMU passes on the files of the launcher.
func portName(fd int) string { return fmt.Sprintf("lamina.%d", fd) }

// mountTag names a directory of the host that the guest may write to.
func mountTag(n int) string { return fmt.Sprintf("writable%d", n) }

const rootTag = "root"

func (qemu) command(ctx context.Context, s *spec) (*exec.Cmd, error) {
	for _, dir := range s.Writable {
		if info, err := os.Stat(dir); err != nil {
			return nil, err
		} else if !info.IsDir() {
			return nil, errors.New(dir + " is no directory")
		}
	}
	initramfs := filepath.Join(runDir, "initramfs")
	if err := makeInitramfs(ctx, s, initramfs); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, qemuProgram, qemuArguments(s, initramfs)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + runDir, "TMPDIR=" + runDir}
	return cmd, nil
}

func qemuArguments(s *spec, initramfs string) []string {
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "q35", "-accel", "tcg,thread=multi", "-smp", "2",
		// Page tables of five levels would cost time, and more so in TCG.
		"-cpu", "max,la57=off",
		"-m", fmt.Sprintf("%dM", s.Memory>>20),
		"-kernel", s.Kernel.Image, "-initrd", initramfs, "-append", strings.Join(slices.Concat(kernelArguments, s.securityArguments()), " "),
		"-chardev", "file,id=console,path=/proc/self/fd/1", "-serial", "chardev:console",
		"-device", "virtio-serial-pci",
	}
	for fd := fdOut; fd < fdDisk; fd++ {
		args = append(args,
			"-chardev", fmt.Sprintf("file,id=fd%d,path=/proc/self/fd/%[1]d", fd),
			"-device", fmt.Sprintf("virtserialport,chardev=fd%d,name=%s", fd, portName(fd)))
	}
	share := func(tag, dir, more string) {
		args = append(args,
			"-fsdev", fmt.Sprintf("local,id=%s,security_model=none,multidevs=remap,path=%s%s", tag, strings.ReplaceAll(dir, ",", ",,"), more),
			"-device", fmt.Sprintf("virtio-9p-pci,fsdev=%s,mount_tag=%[1]s", tag))
	}
	share(rootTag, "/", ",readonly=on")
	for i, dir := range s.Writable {
		share(mountTag(i), dir, "")
	}
	for i := range s.Disks {
		args = append(args,
			// The disks end with the guest, so nothing of them need be synced.
			"-drive", fmt.Sprintf("if=none,id=disk%d,format=raw,cache=unsafe,discard=unmap,file=/proc/self/fd/%d", i, fdDisk+i),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=disk%d", i))
	}
	return args
}

// What the kernel does not know goes to the environment of process 1.
var kernelArguments = []string{
	"console=ttyS0", "quiet",
	"panic=-1", // ends QEMU, for that is not to reboot
	"mitigations=off",
	modeVariable + "=" + modeQEMU, stageVariable + "=" + stageBoot,
}
