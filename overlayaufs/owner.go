package overlayaufs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/internal/failpoint"
	"github.com/lamina-snapshotter/lamina/internal/space"
)

// The owner file and what it is called before it is complete.
const (
	ownerName    = "owner"
	ownerNewName = ".owner.new"
)

// maxOwnerSize is more than any owner file of ours takes, in bytes.
const maxOwnerSize = 4096

// owner is the content of the owner file.
type owner struct {
	UUID  string `json:"uuid"`
	Start uint64 `json:"start"`

	// How the layers were written, which decides how they can be read.
	Form      form `json:"form,omitempty"`
	UserXattr bool `json:"userxattr,omitempty"`
	Metacopy  bool `json:"metacopy,omitempty"` // some of them, perhaps

	// Migrating is the form, as a word, that the layers are being translated to: some are, some are in Form, some are half in
	// each. UserXattr is then of the one of the two that is overlayfs's.
	Migrating string `json:"migrating,omitempty"`
}

// checkSettled refuses layers that no union file system reads rightly.
func (o owner) checkSettled(root string) error {
	if o.Migrating == "" {
		return nil
	}
	return fmt.Errorf("the layers in %s are being migrated, and some are in neither form: finish it with lamina migrate --from %s --to %s",
		root, o.Form, o.Migrating)
}

// checkForm refuses options that would read the layers wrongly: with the other kind of attributes deleted files come
// back, without metacopy a file whose metadata alone was copied up has no content.
func (o owner) checkForm(root string, options []string) error {
	switch userXattr := slices.Contains(options, "userxattr"); {
	case o.UserXattr && !userXattr:
		return fmt.Errorf(`union.userxattr: the layers in %s were written with "on", and would be read wrongly with "off"`, root)
	case !o.UserXattr && userXattr:
		return fmt.Errorf(`union.userxattr: the layers in %s were written with "off", and would be read wrongly with "on"`, root)
	case o.Metacopy && !slices.Contains(options, "metacopy=on"):
		return fmt.Errorf(`union.metacopy: the layers in %s were written with "on", and cannot be read with "off"`, root)
	}
	return nil
}

// Owner returns the uuid of the store that this place belongs to and the start at which that store last claimed it, or
// "", 0 if the root is missing or empty. A root that holds something but no owner file is an error that says what was
// found, and so is an owner file that cannot be read. Owner changes nothing.
func (b *Backend) Owner(ctx context.Context) (uuid string, start uint64, err error) {
	if err := ctx.Err(); err != nil {
		return "", 0, fmt.Errorf("read owner of %s: %w", b.root, err)
	}
	o, err := readOwner(b.root)
	return o.UUID, o.Start, err
}

// Claim records uuid and start as the owner of this place. At return the record is durable.
//
// A crash before the owner file is in place leaves an empty directory that is still new, or the owner there was before;
// the temporary file that may lie beside it is overwritten by the next Claim.
func (b *Backend) Claim(ctx context.Context, uuid string, start uint64) error {
	data, err := json.Marshal(owner{
		UUID: uuid, Start: start,
		Form:      b.form(),
		UserXattr: slices.Contains(b.overlay.options, "userxattr"),
		Metacopy:  slices.Contains(b.overlay.options, "metacopy=on"),
	})
	if err != nil {
		return fmt.Errorf("claim %s: %w", b.root, err)
	}
	if _, err := parseOwner(data); err != nil {
		return fmt.Errorf("claim %s: %w", b.root, err)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("claim %s: %w", b.root, err)
	}
	if _, err := readOwner(b.root); err != nil {
		return err
	}
	// Layers hold set-user-id programs of any origin; no other user may reach them.
	if err := os.Chmod(b.root, 0o700); err != nil {
		return err
	}
	empty := filepath.Join(b.root, emptyName)
	if err := os.Mkdir(empty, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := os.Chmod(empty, 0o755); err != nil { // regardless of the umask
		return err
	}
	if err := b.writeOwner(ctx, data); err != nil {
		return space.Explain(err, b.root)
	}
	b.takeReserve(ctx)
	if err := syncDir(filepath.Dir(b.root)); err != nil { // Open may have made the root
		return err
	}
	b.keepSpares(ctx) // not before: the place is ours now
	return nil
}

// writeOwner replaces the owner file. At return it is durable.
func (b *Backend) writeOwner(ctx context.Context, data []byte) error {
	data = append(data, '\n')
	err := writeDurably(b.root, ownerNewName, ownerName, data)
	if errors.Is(err, unix.ENOSPC) && b.giveUpReserve(ctx) {
		err = writeDurably(b.root, ownerNewName, ownerName, data)
	}
	return err
}

// readOwner returns what the owner file in root says, or an empty owner of a place that is new.
func readOwner(root string) (owner, error) {
	path := filepath.Join(root, ownerName)
	// A pipe would have the open wait for a writer.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) {
		return owner{}, checkNew(root)
	}
	if err != nil {
		return owner{}, err
	}
	defer f.Close() //nolint:errcheck // nothing was written through it
	if info, err := f.Stat(); err != nil {
		return owner{}, err
	} else if !info.Mode().IsRegular() {
		return owner{}, fmt.Errorf("%s is no regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxOwnerSize+1))
	if err != nil {
		return owner{}, err
	}
	o, err := parseOwner(data)
	if err != nil {
		return owner{}, fmt.Errorf("%s does not say which store the directory belongs to (%w): write the file again as "+
			`{"uuid":"...","start":N}, with "form":"aufs", "userxattr":true or "metacopy":true if the layers were written so, or move the directory away and let a new one be made`, path, err)
	}
	return o, nil
}

// parseOwner reads the content of an owner file.
func parseOwner(data []byte) (owner, error) {
	if len(data) > maxOwnerSize {
		return owner{}, fmt.Errorf("it has more than %d bytes", maxOwnerSize)
	}
	var o owner
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields() // what a later format adds may matter
	if err := dec.Decode(&o); err != nil {
		return owner{}, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return owner{}, errors.New("something follows the record")
	}
	if o.UUID == "" {
		return owner{}, errors.New("the uuid is empty")
	}
	if o.Migrating != "" {
		if _, err := parseForm(o.Migrating); err != nil {
			return owner{}, err
		}
	}
	return o, o.Form.check()
}

// checkNew returns an error if root holds something other than what a start of ours that was cut short may leave. Spares are none
// of that: they are made when the owner file is durable, and wiped by name, so what bears their name here is somebody else's.
func checkNew(root string) error {
	entries, err := os.ReadDir(root)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !isOurs(e.Name()) {
			return fmt.Errorf("%s holds %q but no file %q that says which store it belongs to: "+
				"move what is there away, or choose another root", root, e.Name(), ownerName)
		}
	}
	return nil
}

// isOurs reports whether a name in a root is one of those that are there beside the contents and the owner file. The root of
// a file system of its own may have lost+found.
func isOurs(name string) bool {
	if _, ok := parseLink(name); ok || strings.HasPrefix(name, trialPrefix) {
		return true
	}
	return slices.Contains([]string{ownerNewName, probeName, emptyName, reserveName, xinoName, "lost+found"}, name)
}

// writeDurably makes the file name in dir hold data. After a power cut it holds either all of data or what it held
// before: the data is on the disk before the name leads to it, and at return the name is on the disk too. The
// temporary file temp may be left.
func writeDurably(dir, temp, name string, data []byte) error {
	tempPath := filepath.Join(dir, temp)
	f, err := os.OpenFile(tempPath, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(tempPath))
	}
	failpoint.Hit("union.owner-written")
	if err := os.Rename(tempPath, filepath.Join(dir, name)); err != nil {
		return err
	}
	failpoint.Hit("union.owner-renamed")
	return syncDir(dir)
}

// syncDir makes the names in a directory durable.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
