package overlayaufs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/internal/failpoint"
)

// A trial is a set of directories to be mounted once.
type trial struct {
	base, middle, upper, work, merged string
	userXattr                         bool
}

// try is tryStrategy with overlayfs and the options.
func (p *prober) try(ctx context.Context, options []string, check func(*trial) error) error {
	return p.tryStrategy(ctx, overlay{options: options}, slices.Contains(options, "userxattr"), check)
}

// tryStrategy mounts fresh layers, changes what it sees, calls check, and looks whether the changes are there when the
// result is mounted as a committed layer is. Nothing stays mounted.
func (p *prober) tryStrategy(ctx context.Context, s strategy, userXattr bool, check func(*trial) error) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("trying to mount: %w", err)
	}
	t, err := p.newTrial()
	if err != nil {
		return err
	}
	t.userXattr = userXattr
	err = t.mounted(s.writable(t.upper, t.work, []string{t.middle, t.base}), func() error {
		if err := t.change(); err != nil {
			return err
		}
		if check != nil {
			return check(t)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return t.mounted(s.readOnly([]string{t.upper, t.middle, t.base}), t.look)
}

func (p *prober) newTrial() (*trial, error) {
	p.trials++
	dir := filepath.Join(p.dir, strconv.Itoa(p.trials))
	t := &trial{
		base:   filepath.Join(dir, "base"),
		middle: filepath.Join(dir, "middle"),
		upper:  filepath.Join(dir, "upper"),
		work:   filepath.Join(dir, "work"),
		merged: filepath.Join(dir, "merged"),
	}
	for _, d := range []string{t.middle, t.upper, t.work, t.merged, filepath.Join(t.base, "replaced")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	for _, f := range []string{"gone", "changed", "replaced/old"} {
		if err := os.WriteFile(filepath.Join(t.base, f), []byte(f), 0o600); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// mounted calls fn with the union mounted.
func (t *trial) mounted(mounts []mount.Mount, fn func() error) error {
	var err error
	done := 0
	for ; err == nil && done < len(mounts); done++ {
		err = mountHere(mounts[done], t.merged)
	}
	if err == nil {
		failpoint.Hit("union.probe-mounted")
		err = fn()
	} else if done == 1 {
		return err // nothing is mounted
	}
	if err := unix.Unmount(t.merged, unix.MNT_DETACH); err != nil {
		return &os.PathError{Op: "unmount", Path: t.merged, Err: err}
	}
	return err
}

// mountHere mounts on this thread, with an error that explain knows. It knows the flags that strategies use.
func mountHere(m mount.Mount, target string) error {
	var flags uintptr
	var data []string
	for _, option := range m.Options {
		switch option {
		case "ro":
			flags |= unix.MS_RDONLY
		case "remount":
			flags |= unix.MS_REMOUNT
		default:
			data = append(data, option)
		}
	}
	if err := unix.Mount(m.Source, target, m.Type, flags, strings.Join(data, ",")); err != nil {
		return &os.PathError{Op: opMount, Path: target, Err: err}
	}
	return nil
}

// change deletes a file of the base, replaces a directory and changes the mode of another file.
func (t *trial) change() error {
	replaced := filepath.Join(t.merged, "replaced")
	return errors.Join(
		os.Remove(filepath.Join(t.merged, "gone")),
		os.RemoveAll(replaced),
		os.Mkdir(replaced, 0o755),
		os.WriteFile(filepath.Join(replaced, "new"), nil, 0o600),
		os.Chmod(filepath.Join(t.merged, "changed"), 0o640),
	)
}

// look returns an error if the changes are not to be seen.
func (t *trial) look() error {
	if _, err := os.Lstat(filepath.Join(t.merged, "gone")); !errors.Is(err, os.ErrNotExist) {
		return errors.New("a deleted file is there again (whiteout)")
	}
	entries, err := os.ReadDir(filepath.Join(t.merged, "replaced"))
	if err != nil {
		return err
	}
	if len(entries) != 1 || entries[0].Name() != "new" {
		return errors.New("what was in a replaced directory is there again (opaque directory)")
	}
	data, err := os.ReadFile(filepath.Join(t.merged, "changed"))
	if err != nil {
		return err
	}
	if string(data) != "changed" {
		return errors.New("a file whose mode was changed has lost its content")
	}
	return nil
}

// hasIndex looks for the directory of the index, which overlayfs makes when it mounts.
func (t *trial) hasIndex() error { return exists(filepath.Join(t.work, "index")) }

// hasVolatile looks for the guard of a volatile mount.
func (t *trial) hasVolatile() error { return exists(filepath.Join(t.work, guardPath)) }

// hasMetacopy looks for the mark on a file whose mode alone was changed.
func (t *trial) hasMetacopy() error {
	attr := "trusted.overlay.metacopy"
	if t.userXattr {
		attr = "user.overlay.metacopy"
	}
	if _, err := unix.Lgetxattr(filepath.Join(t.upper, "changed"), attr, nil); err != nil {
		return fmt.Errorf("no %s on a file after chmod", attr)
	}
	return nil
}

// exists returns an error, without errno, if nothing is at path.
func exists(path string) error {
	if _, err := os.Lstat(path); err != nil {
		return fmt.Errorf("no %s in the work directory", filepath.Base(path))
	}
	return nil
}
